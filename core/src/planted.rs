//! Mistakes made on purpose, for every fuzz target with a model or an oracle: a corpus that does not notice its own says
//! nothing when it passes. Compiled with `--cfg planted` only, which `scripts/planted.sh` alone says; no ordinary build
//! has this module or one of its mistakes. `fuzz/tests/planted.rs` makes them one after the other.

use core::sync::atomic::{AtomicUsize, Ordering};

macro_rules! mistakes {
    ($($mistake:ident | $target:literal | $what:literal)*) => {
        /// A mistake that can be made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mistake {
            $(#[doc = $what] $mistake),*
        }

        /// Every mistake, and the target whose corpus has to notice it.
        pub const MISTAKES: &[(Mistake, &str)] = &[$((Mistake::$mistake, $target)),*];
    };
}

mistakes! {
    VersionOfAnyDigit | "detect" | "A request line is HTTP/1 whatever its minor version."
    LastProtocolUnread | "client_hello" | "The last ALPN name of a ClientHello is not read."
    DotKept | "header" | "The trailing dot of a name in a transport header is kept."
    FramesAreShared | "mux" | "Bytes of a stream may be put into another's frame."
    LongMethodUnknown | "http1" | "A request method of 32 bytes or more is none."
    CaseKept | "identity" | "Names that differ in case only are two."
    FirstNameOnly | "san" | "Of a leaf's names only the first one counts."
    AuthorityIsLeaf | "san" | "An authority's certificate is a leaf like any other."
    FirstMistakeOnly | "env" | "Of the mistakes in an environment only the first is named."
    LastRouteWins | "profile" | "Of the routes that match a request the last one has it."
    AnchorsWithoutBrackets | "profile" | "The anchors around a path's pattern do not hold all of its alternatives."
    ForeignBackendsNeedNoGrant | "routes" | "A route may send to a Service of another namespace without its consent."
    ConsumersAddToProducers | "routes" | "A client has the routes of its own namespace beside those of the Service's."
    MissingNetworksAdmitAll | "server_policy" | "An AuthorizationPolicy whose NetworkAuthentication is not there admits everybody."
    ProbesNeedPermission | "server_policy" | "Where routes are attached to a Server, probes have no route of their own."
    ReserveOfOneSecond | "budget" | "The retries that are allowed in any case are those of one second, not of the window."
    RetriesNeverExpire | "budget" | "What happened before the window counts for ever."
    PathsAreReadOnce | "route" | "A path is not looked at as a server may read it."
    ReplacementKeepsItsSlash | "route" | "A slash at the end of what replaces a prefix stays."
    RewindForgotten | "retry" | "A try begins in the body where the one before it stopped."
    ProcessedIsRepeated | "retry" | "A request that may have been processed is sent again whatever its method."
    HolesForgotten | "api" | "The holes of a network are not read."
    PlainInsteadOfNothing | "api" | "An endpoint whose identity cannot be read has none."
    PodIsNotMarked | "inject" | "The label that says whose a pod is is not written."
    GuaranteeIsLost | "inject" | "In a Guaranteed pod the proxy has no limits."
    HeavierWins | "balance" | "Of two endpoints the heavier one is picked."
    AvoidedIsChosen | "balance" | "The endpoint to avoid is chosen like any other when nobody is usable."
    DecayIsForgotten | "balance" | "A load does not decay."
    TurnsAreShared | "strategy" | "A turn of round robin that another zone takes is lost to the client's own."
    BitsAreUsedTwice | "strategy" | "Who takes the place of one that is out is drawn by the bits that drew that one."
    OverloadHoldsAZone | "strategy" | "A zone is not left however much it has to do."
    OneTooMany | "limits" | "One more than the limit is let in."
    CountsBeginAnew | "limits" | "What is under way does not count once a limit changes."
    TwoProbes | "breaker" | "While a probe is under way another may be sent."
    AllMayBeOut | "breaker" | "Breakers may leave out every endpoint."
    HintIsUnbounded | "breaker" | "A breaker stays shut for as long as the endpoint says."
    RefusedCosts | "rate" | "A request that its client's own limit refuses counts for the total."
    ChangeRefills | "rate" | "Every change of a limit refills all buckets."
    EndIsMissed | "renewal" | "A certificate that ends during its renewal stays in use."
    AgeIsForgotten | "pool" | "A pooled connection may grow as old as it likes."
    OldestFirst | "pool" | "The connection that has been idle longest is taken."
    ByteLostWhenFull | "copy" | "When a writer takes no more, the first byte that is kept for it is lost."
    EndIsNotPassedOn | "copy" | "A half-close does not travel."
    RangeIsOneSlot | "redirect" | "A range of ports counts as one in a multiport rule."
    SubnetsOfIpv4Only | "redirect" | "IPv6 subnets are not ignored."
    OwnersAreNotTried | "redirect" | "A table is read back without trying the proxy's own user."
    FirstLengthCounts | "messages" | "Of two lengths of a body that differ the first one counts."
    ChunkEndsAnyhow | "messages" | "A chunk may be longer than it says."
    PartialIsForgotten | "records" | "The start of a record that is not whole yet is dropped."
    PiecesChangePlaces | "records" | "Pieces that become one record change places."
    LengthIsNamedAway | "request" | "A client may have any header removed by naming it in Connection."
    HopByHopIsForwarded | "request" | "What a client names in Connection is forwarded."
}

/// One more than the mistake that is made; 0 is none.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Makes a mistake from now on, or none.
pub fn make(mistake: Option<Mistake>) {
    MADE.store(mistake.map_or(0, |mistake| mistake as usize + 1), Ordering::Relaxed);
}

/// Whether a mistake is made now.
pub fn makes(mistake: Mistake) -> bool {
    MADE.load(Ordering::Relaxed) == mistake as usize + 1
}
