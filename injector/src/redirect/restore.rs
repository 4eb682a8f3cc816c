//! The plan as one transaction: the input of `iptables-restore --noflush`.
//!
//! Pure. A transaction holds or fails as a whole, and applied twice it leaves what it left the first time: our two
//! chains are declared, which under `--noflush` empties just them, and each is called by exactly one jump.

use std::fmt::Write as _;

use super::table::{Line, Table};
use super::{Family, INBOUND_CHAIN, OUTBOUND_CHAIN, Plan, Rule, rules};

/// Input for `iptables-restore --noflush` (`ip6tables-restore` for IPv6) that turns `existing` into a table in
/// which the plan holds. Rules that are not ours and do not call our chains are left alone.
pub fn restore(plan: &Plan, family: Family, existing: &Table) -> String {
    let mut text = format!("*nat\n:{INBOUND_CHAIN} - [0:0]\n:{OUTBOUND_CHAIN} - [0:0]\n");
    for rule in rules(plan, family) {
        match rule.chain.as_str() {
            INBOUND_CHAIN | OUTBOUND_CHAIN => append(&mut text, &rule),
            _ => install_jump(&mut text, &rule, existing),
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// Input that removes our chains and what calls them; `None` if there is nothing of ours. For rules that were left
/// in the *other* of the kernel's two rule sets (legacy, nft), where they would still act beside the new ones.
pub fn removal(existing: &Table) -> Option<String> {
    let ours = [INBOUND_CHAIN, OUTBOUND_CHAIN];
    let present: Vec<&str> = ours.into_iter().filter(|chain| existing.chain(chain).is_some()).collect();
    if present.is_empty() {
        return None;
    }
    let mut text = "*nat\n".to_owned();
    for chain in &present {
        existing.jumps_to(chain).for_each(|line| delete(&mut text, line));
        let _infallible = writeln!(text, "-F {chain}");
    }
    for chain in &present {
        let _infallible = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// Keeps the one jump that is there if it is the plain one, whoever wrote it and under whatever comment; anything
/// else (none, several, one with a condition) is replaced. What calls our chains from within them is emptied with
/// them and needs no deleting.
fn install_jump(text: &mut String, jump: &Rule, existing: &Table) {
    let chain = if jump.chain == "OUTPUT" { OUTBOUND_CHAIN } else { INBOUND_CHAIN };
    let present: Vec<&Line> = existing
        .jumps_to(chain)
        .filter(|line| ![INBOUND_CHAIN, OUTBOUND_CHAIN].contains(&line.rule.chain.as_str()))
        .collect();
    if let [only] = present.as_slice() {
        let plain = only.rule.conditions.is_empty() && only.rule.target == jump.target;
        if plain && only.rule.chain == jump.chain {
            return;
        }
    }
    for line in present {
        delete(text, line);
    }
    append(text, jump);
}

// Writing to a `String` cannot fail.
fn append(text: &mut String, rule: &Rule) {
    let _infallible = writeln!(text, "-A {} {rule}", rule.chain);
}

fn delete(text: &mut String, line: &Line) {
    let _infallible = writeln!(text, "-D {} {}", line.rule.chain, line.text);
}
