//! Accepted ranges in `filter FORWARD` of iptables-nft, for `--iptables-forward-rules`. An accept in our own
//! table cannot override the DROP of another table, so these rules must stand where other programs drop, in
//! exactly the shape that iptables gives them: `iptables-save` lists them and `iptables -D` removes them.
//!
//! They are known again by their comment, which upstream Kilo's have as well.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use kilo_nftables::{Attributes, Writer};
use kilo_state::ForwardAccept;
use netlink_packet_core::NLM_F_CREATE;

use crate::netlink::nftables::{self, NFPROTO_IPV4, NFPROTO_IPV6};
use crate::netlink::socket::{Refused, Request, Socket};

const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
/// What all comments of these rules, upstream's too, begin with.
const COMMENT: &str = "Kilo: forward packets ";
const COMMENT_FROM: &str = "Kilo: forward packets from the pod subnet";
const COMMENT_TO: &str = "Kilo: forward packets to the pod subnet";
/// `struct xt_comment_info`.
const COMMENT_SIZE: usize = 256;

const NF_INET_FORWARD: u32 = 2;
const NF_ACCEPT: u32 = 1;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_CMP_EQ: u32 = 0;

/// Which of its addresses a packet is accepted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    From,
    To,
}

/// A rule of ours that is there.
#[derive(Debug)]
struct Found {
    direction: Direction,
    net: IpNet,
    handle: u64,
}

fn expression(to: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    to.nest(1, |element| {
        element.text(1, name);
        element.nest(2, fill);
    });
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn family(net: &IpNet) -> u8 {
    if net.addr().is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 }
}

/// Where the address stands in the IP header.
fn offset(family: u8, direction: Direction) -> u32 {
    match (family, direction) {
        (NFPROTO_IPV4, Direction::From) => 12,
        (NFPROTO_IPV4, Direction::To) => 16,
        (_, Direction::From) => 8,
        (_, Direction::To) => 24,
    }
}

/// Writes the expressions of a rule as iptables-nft 1.8 does.
fn expressions(list: &mut Writer, net: &IpNet, direction: Direction) {
    let family = family(net);
    let address = octets(net.network());
    let bits = usize::from(net.prefix_len());
    if bits > 0 {
        // Whole bytes are compared as they are, anything else through a mask.
        let masked = !bits.is_multiple_of(8);
        let length = if masked { address.len() } else { bits / 8 };
        expression(list, "payload", |e| {
            e.number(1, NFT_REG_1);
            e.number(2, NFT_PAYLOAD_NETWORK_HEADER);
            e.number(3, offset(family, direction));
            e.number(4, length as u32);
        });
        if masked {
            expression(list, "bitwise", |e| {
                e.number(1, NFT_REG_1);
                e.number(2, NFT_REG_1);
                e.number(3, length as u32);
                e.number(6, 0);
                e.nest(4, |mask| mask.bytes(1, &octets(net.netmask())));
                e.nest(5, |xor| xor.bytes(1, &vec![0; length]));
            });
        }
        expression(list, "cmp", |e| {
            e.number(1, NFT_REG_1);
            e.number(2, NFT_CMP_EQ);
            e.nest(3, |value| value.bytes(1, &address[..length]));
        });
    }
    expression(list, "match", |e| {
        let mut comment = match direction {
            Direction::From => COMMENT_FROM,
            Direction::To => COMMENT_TO,
        }
        .as_bytes()
        .to_vec();
        comment.resize(COMMENT_SIZE, 0);
        e.text(1, "comment");
        e.number(2, 0);
        e.bytes(3, &comment);
    });
    expression(list, "counter", |e| {
        e.bytes(1, &0u64.to_be_bytes());
        e.bytes(2, &0u64.to_be_bytes());
    });
    expression(list, "immediate", |e| {
        e.number(1, NFT_REG_VERDICT);
        e.nest(2, |data| data.nest(2, |verdict| verdict.number(1, NF_ACCEPT)));
    });
}

/// The prefix that a mask stands for.
fn prefix(address: &[u8], bits: u8) -> Option<IpNet> {
    let ip: IpAddr = match *address {
        [a, b, c, d] => [a, b, c, d].into(),
        _ => <[u8; 16]>::try_from(address).ok()?.into(),
    };
    IpNet::new(ip, bits).ok()
}

/// Reads a rule of ours. A rule that has anything else in it is somebody's who borrowed our words.
fn read(family: u8, rule: Attributes<'_>) -> Option<Found> {
    let size = if family == NFPROTO_IPV4 { 4 } else { 16 };
    let handle = u64::from_be_bytes(rule.get(3)?.try_into().ok()?);
    let (mut place, mut mask, mut address, mut comment, mut accepts) = (None, None, None, None, false);
    for (_, element) in rule.nest(4)? {
        let element = Attributes(element);
        let data = element.nest(2).unwrap_or(Attributes(&[]));
        match element.text(1)? {
            "payload" if place.is_none() && data.number(2)? == NFT_PAYLOAD_NETWORK_HEADER => {
                place = Some(data.number(3)?);
            }
            "bitwise" if mask.is_none() => mask = Some(data.nest(4)?.get(1)?),
            "cmp" if address.is_none() && data.number(2)? == NFT_CMP_EQ => {
                address = Some(data.nest(3)?.get(1)?);
            }
            "match" if comment.is_none() && data.text(1)? == "comment" => comment = Some(data.text(3)?),
            "counter" => {}
            "immediate" => accepts = data.nest(2)?.nest(2)?.number(1)? == NF_ACCEPT,
            _ => return None,
        }
    }
    let comment = comment.filter(|comment| accepts && comment.starts_with(COMMENT))?;
    let (direction, net) = match (place, address) {
        // Every address: the kernel has nothing to compare, and only the comment tells the direction.
        (None, None) => {
            let to = comment[COMMENT.len()..].starts_with("to ");
            (if to { Direction::To } else { Direction::From }, prefix(&vec![0; size], 0)?)
        }
        (Some(place), Some(address)) => {
            let direction =
                [Direction::From, Direction::To].into_iter().find(|d| offset(family, *d) == place)?;
            let bits = match mask {
                Some(mask) => mask.iter().map(|byte| byte.count_ones()).sum::<u32>(),
                None => address.len() as u32 * 8,
            };
            let mut whole = address.to_vec();
            whole.resize(size, 0);
            (direction, prefix(&whole, u8::try_from(bits).ok()?)?)
        }
        _ => return None,
    };
    Some(Found { direction, net, handle })
}

/// What names our chain in a message about rules.
fn in_chain(to: &mut Writer) {
    to.text(1, TABLE);
    to.text(2, CHAIN);
}

/// Our rules of a family.
fn list(socket: &mut Socket, family: u8) -> Result<Vec<Found>, Refused> {
    nftables::rules(socket, family, TABLE, Some(CHAIN), |rule| read(family, rule))
}

/// The ranges that are accepted in both directions, and those that are in one only, sorted.
pub(crate) fn observe(
    socket: &mut Socket,
    ipv6: bool,
) -> Result<(Vec<ForwardAccept>, Vec<ForwardAccept>), Refused> {
    let mut found: BTreeMap<IpNet, [bool; 2]> = BTreeMap::new();
    for family in [Some(NFPROTO_IPV4), ipv6.then_some(NFPROTO_IPV6)].into_iter().flatten() {
        for rule in list(socket, family)? {
            found.entry(rule.net).or_default()[usize::from(rule.direction == Direction::To)] = true;
        }
    }
    let (both, half) = found.into_iter().partition::<Vec<_>, _>(|(_, both)| *both == [true; 2]);
    let ranges =
        |list: Vec<(IpNet, [bool; 2])>| list.into_iter().map(|(net, _)| ForwardAccept(net)).collect();
    Ok((ranges(both), ranges(half)))
}

/// Table and chain as iptables makes them when it needs them first.
fn create_chain(family: u8) -> [Request; 2] {
    [
        nftables::message(nftables::NFT_MSG_NEWTABLE, NLM_F_CREATE, family, |table| table.text(1, TABLE)),
        nftables::message(nftables::NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, |chain| {
            chain.text(1, TABLE);
            chain.text(3, CHAIN);
            chain.nest(4, |hook| {
                hook.number(1, NF_INET_FORWARD);
                hook.number(2, 0);
            });
            chain.number(5, NF_ACCEPT);
            chain.text(7, "filter");
        }),
    ]
}

/// Accepts a range in both directions, before all other rules. What is there already stays where it is.
pub(crate) fn add(socket: &mut Socket, accept: &ForwardAccept) -> Result<(), Refused> {
    let net = accept.0;
    let family = family(&net);
    nftables::commit(socket, |socket| {
        let there = list(socket, family)?;
        let mut changes = Vec::new();
        for direction in [Direction::From, Direction::To] {
            if there.iter().any(|rule| rule.net == net && rule.direction == direction) {
                continue;
            }
            // Without a place and without "append" a rule goes to the head of its chain.
            changes.push(nftables::message(nftables::NFT_MSG_NEWRULE, NLM_F_CREATE, family, |rule| {
                in_chain(rule);
                rule.nest(4, |list| expressions(list, &net, direction));
            }));
        }
        if !changes.is_empty() && !nftables::chain_exists(socket, family, (TABLE, CHAIN))? {
            changes.splice(0..0, create_chain(family));
        }
        Ok(changes)
    })
}

/// Removes all rules of ours for a range.
pub(crate) fn delete(socket: &mut Socket, accept: &ForwardAccept) -> Result<(), Refused> {
    let family = family(&accept.0);
    nftables::commit(socket, |socket| {
        let ours = list(socket, family)?.into_iter().filter(|rule| rule.net == accept.0);
        Ok(ours
            .map(|rule| {
                nftables::message(nftables::NFT_MSG_DELRULE, 0, family, |which| {
                    in_chain(which);
                    which.bytes(3, &rule.handle.to_be_bytes());
                })
            })
            .collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expressions in the message of `iptables -I FORWARD -s 10.2.1.0/24 -m comment --comment "Kilo:
    /// forward packets from the pod subnet" -j ACCEPT` of iptables-nft 1.8.9, the padding of the comment aside.
    const IPTABLES: [&str; 2] = [
        "340001800c0001007061796c6f6164002400028008000100000000010800020000000001080003000000000c0800040000000003\
         2c00018008000100636d700020000280080001000000000108000200000000000c000380070001000a020100\
         2c0101800a0001006d617463680000001c0102800c000100636f6d6d656e7400080002000000000004010300\
         4b696c6f3a20666f7277617264207061636b6574732066726f6d2074686520706f64207375626e6574",
        "2c0001800c000100636f756e746572001c0002800c00010000000000000000000c0002000000000000000000\
         300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c0002800800010000000001",
    ];

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// A rule as the kernel tells it, number 7 of its chain.
    fn rule(list: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut rule = Writer::default();
        in_chain(&mut rule);
        rule.bytes(3, &7u64.to_be_bytes());
        rule.nest(4, list);
        rule.0
    }

    #[test]
    fn bytes_are_those_of_iptables() {
        let padding = "00".repeat(COMMENT_SIZE - COMMENT_FROM.len());
        let wanted = [IPTABLES[0], &padding, IPTABLES[1]].concat();
        let mut written = Writer::default();
        expressions(&mut written, &net("10.2.1.0/24"), Direction::From);
        let hex: String = written.0.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, wanted);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in
            ["10.2.1.0/24", "10.2.1.7/32", "10.2.0.0/17", "0.0.0.0/0", "fd00:1::/64", "fd00:1::/70", "::/0"]
        {
            for direction in [Direction::From, Direction::To] {
                let rule = rule(|list| expressions(list, &net(text), direction));
                let found = read(family(&net(text)), Attributes(&rule)).unwrap();
                assert_eq!((found.direction, found.net, found.handle), (direction, net(text), 7));
            }
        }
    }

    #[test]
    fn a_rule_with_more_in_it_is_not_ours() {
        let rule = rule(|list| {
            expression(list, "meta", |e| e.number(2, 4));
            expressions(list, &net("10.2.1.0/24"), Direction::From);
        });
        assert!(read(NFPROTO_IPV4, Attributes(&rule)).is_none());
    }
}
