//! The chains that upstream Kilo leaves in the tables of iptables-nft when it is stopped without clean-up or
//! killed: found, and removed together with the rules that lead there. Nothing else in these tables is touched.
//!
//! ```text
//! nat     POSTROUTING  -s|-d RANGE "Kilo: jump to …" -j KILO-NAT        KILO-NAT   …
//! filter  INPUT        -p ipencap "Kilo: jump to IPIP chain" -j KILO-IPIP   KILO-IPIP  …
//!                      -p ipencap "Kilo: reject other IPIP traffic" -j DROP
//! ```

use kilo_nftables::{Attributes, Writer};
use kilo_state::{Leftover, UpstreamChain};

use crate::netlink::nftables::{self, NFPROTO_IPV4, NFPROTO_IPV6};
use crate::netlink::socket::{Refused, Request, Socket};

/// What the comments of all of upstream's rules begin with.
const COMMENT: &str = "Kilo: ";
/// The comment of the rule that does not lead to a chain of upstream's and goes with one all the same.
const DROP: (&str, &str) = ("INPUT", "Kilo: reject other IPIP traffic");
/// `NFT_JUMP`, `NFT_GOTO`.
const JUMPS: [u32; 2] = [-3i32 as u32, -4i32 as u32];
/// `NFTNL_UDATA_RULE_COMMENT`, where some versions of iptables put a comment.
const UDATA_COMMENT: u8 = 0;

/// How thoroughly is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// At all rules of the tables.
    Everything,
    /// Whether upstream's chains are there, which costs next to nothing; then at all rules.
    Chains,
}

fn place(chain: UpstreamChain) -> (&'static str, &'static str) {
    match chain {
        UpstreamChain::Nat => ("nat", "KILO-NAT"),
        UpstreamChain::Ipip => ("filter", "KILO-IPIP"),
    }
}

fn family(ipv6: bool) -> u8 {
    if ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }
}

/// What a table has of one of upstream's chains.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// The chain itself.
    chain: bool,
    /// Rules in it.
    inside: usize,
    /// Upstream's rules in other chains: chain and handle.
    around: Vec<(String, u64)>,
    /// Somebody else sends packets to it.
    foreign: bool,
}

impl Found {
    /// Whether there is something to remove: an empty chain to which somebody else sends packets has to stay.
    fn is_leftover(&self) -> bool {
        self.inside > 0 || !self.around.is_empty() || (self.chain && !self.foreign)
    }
}

/// What a rule has to do with a chain of upstream's.
enum Part {
    Inside,
    Around(String, u64),
    Foreign,
}

/// The comment of a rule, by the match of that name or in the rule's own data.
fn comment(rule: Attributes<'_>) -> Option<&str> {
    let of_match = rule.nest(4).into_iter().flatten().find_map(|(_, element)| {
        let element = Attributes(element);
        let data = element.nest(2)?;
        let is_comment = element.text(1)? == "match" && data.text(1)? == "comment";
        if is_comment { data.text(3) } else { None }
    });
    of_match.or_else(|| {
        let mut data = rule.get(7)?;
        while let [kind, length, rest @ ..] = data {
            let value = rest.get(..usize::from(*length))?;
            if *kind == UDATA_COMMENT {
                return text_before_zero(value);
            }
            data = &rest[value.len()..];
        }
        None
    })
}

fn text_before_zero(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

/// The chain that a rule sends packets to.
fn target(rule: Attributes<'_>) -> Option<&str> {
    rule.nest(4)?.find_map(|(_, element)| {
        let element = Attributes(element);
        if element.text(1)? != "immediate" {
            return None;
        }
        let verdict = element.nest(2)?.nest(2)?.nest(2)?;
        JUMPS.contains(&verdict.number(1)?).then(|| verdict.text(2)).flatten()
    })
}

/// What a rule has to do with a chain of upstream's, if anything.
fn part(rule: Attributes<'_>, wanted: UpstreamChain) -> Option<Part> {
    let chain = rule.text(2)?;
    let (_, name) = place(wanted);
    if chain == name {
        return Some(Part::Inside);
    }
    let comment = comment(rule).filter(|comment| comment.starts_with(COMMENT));
    let goes_with = wanted == UpstreamChain::Ipip && comment.is_some_and(|text| (chain, text) == DROP);
    if !goes_with && target(rule) != Some(name) {
        return None;
    }
    if comment.is_none() {
        return Some(Part::Foreign);
    }
    Some(Part::Around(chain.to_owned(), u64::from_be_bytes(rule.get(3)?.try_into().ok()?)))
}

/// Looks for one of upstream's chains and all that has to do with it.
fn find(socket: &mut Socket, ipv6: bool, chain: UpstreamChain) -> Result<Found, Refused> {
    let (table, _) = place(chain);
    let there = nftables::chain_exists(socket, family(ipv6), place(chain))?;
    let mut found = Found { chain: there, ..Found::default() };
    let parts = nftables::rules(socket, family(ipv6), table, None, |rule| part(rule, chain))?;
    for part in parts {
        match part {
            Part::Inside => found.inside += 1,
            Part::Around(chain, handle) => found.around.push((chain, handle)),
            Part::Foreign => found.foreign = true,
        }
    }
    Ok(found)
}

/// The chains of upstream's that are there, or of which rules are.
pub(crate) fn observe(socket: &mut Socket, ipv6: bool, search: Search) -> Result<Vec<Leftover>, Refused> {
    let mut found = Vec::new();
    for ipv6 in [Some(false), ipv6.then_some(true)].into_iter().flatten() {
        for chain in [UpstreamChain::Nat, UpstreamChain::Ipip] {
            let look =
                search == Search::Everything || nftables::chain_exists(socket, family(ipv6), place(chain))?;
            if look && find(socket, ipv6, chain)?.is_leftover() {
                found.push(Leftover::Chain { ipv6, chain });
            }
        }
    }
    Ok(found)
}

/// Removes a chain of upstream's and its rules elsewhere, in one transaction. A chain that somebody else sends
/// packets to is emptied and stays.
pub(crate) fn remove(socket: &mut Socket, ipv6: bool, chain: UpstreamChain) -> Result<(), Refused> {
    let (table, name) = place(chain);
    nftables::commit(socket, |socket| {
        let found = find(socket, ipv6, chain)?;
        let mut changes: Vec<Request> = Vec::new();
        let mut change = |kind: u16, fill: &dyn Fn(&mut Writer)| {
            changes.push(nftables::message(kind, 0, family(ipv6), |to| {
                to.text(1, table);
                fill(to);
            }));
        };
        for (around, handle) in &found.around {
            change(nftables::NFT_MSG_DELRULE, &|body| {
                body.text(2, around);
                body.bytes(3, &handle.to_be_bytes());
            });
        }
        if found.inside > 0 {
            // Without a handle: all of them.
            change(nftables::NFT_MSG_DELRULE, &|body| body.text(2, name));
        }
        if found.chain && !found.foreign {
            change(nftables::NFT_MSG_DELCHAIN, &|body| body.text(3, name));
        }
        Ok(changes)
    })
}
