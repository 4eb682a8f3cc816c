//! Which list of server names has a connection: a table of sentences, and a naive restatement.

use super::{tests::route, *};
use alloc::{string::String, vec, vec::Vec};
use proptest::prelude::*;

#[test]
fn every_sentence_about_server_names_holds() {
    for (sentence, lists, sni, expected) in [
        ("a name is exact", &[&["a.b"][..]][..], "a.b", Some(0)),
        ("case does not count", &[&["a.b"]], "A.B", Some(0)),
        ("another name is another", &[&["a.b"]], "a.bc", None),
        ("a longer name is another", &[&["a.b"]], "x.a.b", None),
        ("a suffix takes one label", &[&["*.b.c"]], "a.b.c", Some(0)),
        ("and more", &[&["*.b.c"]], "a.a.B.C", Some(0)),
        ("but not none", &[&["*.b.c"]], "b.c", None),
        ("nor half of one", &[&["*.b.c"]], "ab.c", None),
        ("nor an empty one", &[&["*.b.c"]], ".b.c", None),
        ("the longer suffix wins", &[&["*.c"], &["*.b.c"], &["*.d.c"]], "a.b.c", Some(1)),
        ("wherever it stands", &[&["*.b.c"], &["*.c"]], "a.b.c", Some(0)),
        ("an exact name wins over the longest suffix", &[&["*.a.b.c"], &["x.a.b.c"]], "x.a.b.c", Some(1)),
        ("the best of a list counts", &[&["*.b.c"], &["*.c", "x.y", "a.b.c"]], "a.b.c", Some(1)),
        ("of ties the earlier wins", &[&["*.c"], &["*.b.c"], &["*.B.c"]], "a.b.c", Some(1)),
        ("of exact ones too", &[&["a.b"], &["a.b"]], "a.b", Some(0)),
        ("a list without names has all", &[&[]], "a.b", Some(0)),
        ("but what another one names", &[&[], &["*.b"]], "a.b", Some(1)),
        ("what nobody names is nobody's", &[&["*.b"], &["c"]], "a.c", None),
        ("where there is nobody, too", &[], "a.b", None),
    ] {
        assert_eq!(chosen_sni(lists, sni), expected, "{sentence}: {sni:?} of {lists:?}");
    }
}

proptest! {
    #[test]
    fn a_server_name_goes_where_its_longest_pattern_is(
        lists in proptest::collection::vec(
            proptest::collection::vec(r"(\*\.)?[ab]{1,2}(\.[ab]{1,2}){0,2}", 0..4), 0..6
        ),
        sni in r"[abAB]{1,2}(\.[abAB]{1,2}){0,3}",
    ) {
        // Naively: the text of a name against the text of a pattern.
        let lower = sni.to_ascii_lowercase();
        let points = |pattern: &String| match pattern.strip_prefix('*') {
            Some(suffix) => (lower.len() > suffix.len() && lower.ends_with(suffix)).then_some(suffix.len()),
            None => (*pattern == lower).then_some(usize::MAX),
        };
        let mut best = None;
        for (i, patterns) in lists.iter().enumerate().rev() {
            let of_list =
                if patterns.is_empty() { Some(0) } else { patterns.iter().filter_map(points).max() };
            // From behind: of equals the earlier.
            if let Some(points) = of_list && best.is_none_or(|(most, _)| points >= most) {
                best = Some((points, i));
            }
        }
        let lists: Vec<Vec<&str>> = lists.iter().map(|list| list.iter().map(String::as_str).collect()).collect();
        let lists: Vec<&[&str]> = lists.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(chosen_sni(&lists, &sni), best.map(|(_, i)| i));
    }
}

fn chosen_sni(lists: &[&[&str]], sni: &str) -> Option<usize> {
    let lists: Vec<_> = lists.iter().map(|hosts| route(hosts, vec![]).hosts).collect();
    choose_sni(lists.iter().map(Vec::as_slice), sni)
}
