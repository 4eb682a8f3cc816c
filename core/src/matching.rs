//! The small matchers that policies and routes are made of.

use crate::identity::Identity;
use alloc::{string::String, vec::Vec};
use core::net::IpAddr;
use ipnet::IpNet;

/// Addresses inside `net` and outside every `except`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkMatch {
    /// The network.
    pub net: IpNet,
    /// Its holes.
    pub except: Vec<IpNet>,
}

impl NetworkMatch {
    /// Is the address inside? An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let _ = addr;
        todo!()
    }
}

/// A set of identities by their last DNS labels. No labels means any DNS identity. Contract 3.4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuffixMatch {
    /// Labels in writing order, lower case.
    pub labels: Vec<String>,
}

impl SuffixMatch {
    /// Does a DNS identity end with these labels? A URI identity never does.
    pub fn matches(&self, identity: &Identity) -> bool {
        let _ = identity;
        todo!()
    }
}
