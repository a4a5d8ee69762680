//! Policy rules that look up Kilo's table.

use std::net::IpAddr;

use ipnet::IpNet;
use kilo_state::{PROTOCOL, RULE_PRIORITY, TABLE};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::address::family;
use super::socket::{Message, Refused, Request, Socket};
use super::{decode, request};

pub(crate) const RTM_NEWRULE: u16 = 32;
pub(crate) const RTM_DELRULE: u16 = 33;
/// Two agents may have made the same rule at different priorities; more than a few times is a loop.
const DELETE_TRIES: usize = 16;

/// A rule with its link by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelRule {
    pub src: Option<IpNet>,
    pub dst: IpNet,
    pub iif: Option<String>,
    pub table: u32,
}

/// Reads a rule that looks up Kilo's table and selects by nothing but addresses and the incoming link.
pub(crate) fn parse(message: &Message<'_>) -> Option<KernelRule> {
    let (RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule)) = decode(message)? else {
        return None;
    };
    let header = &rule.header;
    let net = |ip: IpAddr, length: u8| IpNet::new(ip, length).ok();
    let (mut src, mut dst, mut iif, mut table) = (None, None, None, u32::from(header.table));
    for attribute in &rule.attributes {
        if let RuleAttribute::Source(ip) = attribute {
            src = Some(net(*ip, header.src_len)?);
        } else if let RuleAttribute::Destination(ip) = attribute {
            dst = Some(net(*ip, header.dst_len)?);
        } else if let RuleAttribute::Iifname(name) = attribute {
            iif = Some(name.clone());
        } else if let RuleAttribute::Table(id) = attribute {
            table = *id;
        } else if selects_more(attribute) {
            return None;
        }
    }
    // Of a rule whose link has gone the kernel says "detached".
    let flags = header.flags - RuleFlags::IifDetached;
    let plain = header.action == RuleAction::ToTable && header.tos == 0 && flags.is_empty();
    (plain && table == TABLE).then_some(KernelRule { src, dst: dst?, iif, table })
}

/// Whether an attribute makes a rule hold for some packets only.
fn selects_more(attribute: &RuleAttribute) -> bool {
    matches!(
        attribute,
        RuleAttribute::FwMark(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::TunId(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
    )
}

/// All such rules, sorted, each once.
pub(crate) fn list(socket: &mut Socket, ipv6: bool) -> Result<Vec<KernelRule>, Refused> {
    let mut rules = Vec::new();
    let families = [Some(AddressFamily::Inet), ipv6.then_some(AddressFamily::Inet6)];
    for family in families.into_iter().flatten() {
        let mut message = RuleMessage::default();
        message.header.family = family;
        let get = request(&RouteNetlinkMessage::GetRule(message), 0);
        match socket.dump(&get, |m| (m.kind == RTM_NEWRULE).then(|| parse(m)).flatten()) {
            Ok(list) => rules.extend(list),
            // A kernel without policy routing for this family.
            Err(refused) if matches!(refused.errno, Errno::OPNOTSUPP | Errno::AFNOSUPPORT) => {}
            Err(refused) => return Err(refused),
        }
    }
    rules.sort();
    rules.dedup();
    Ok(rules)
}

fn message(rule: &KernelRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.dst.addr());
    message.header.action = RuleAction::ToTable;
    message.header.dst_len = rule.dst.prefix_len();
    message.attributes.push(RuleAttribute::Destination(rule.dst.addr()));
    if let Some(src) = rule.src {
        message.header.src_len = src.prefix_len();
        message.attributes.push(RuleAttribute::Source(src.addr()));
    }
    message.attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    message.attributes.push(RuleAttribute::Table(rule.table));
    message
}

/// Adds a rule of ours, if it is not there.
pub(crate) fn add(socket: &mut Socket, rule: &KernelRule) -> Result<(), Refused> {
    let mut message = message(rule);
    message.attributes.push(RuleAttribute::Priority(RULE_PRIORITY));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    let add: Request = request(&RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL);
    match socket.transact(&[add], || ()).pop() {
        Some(Err(refused)) if refused.errno != Errno::EXIST => Err(refused),
        _ => Ok(()),
    }
}

/// Removes a rule as often as it is there, whoever made it and at whichever priority.
pub(crate) fn delete(socket: &mut Socket, rule: &KernelRule) -> Result<(), Refused> {
    let delete = request(&RouteNetlinkMessage::DelRule(message(rule)), 0);
    for _ in 0..DELETE_TRIES {
        match socket.transact(std::slice::from_ref(&delete), || ()).pop() {
            Some(Err(refused)) if refused.errno == Errno::NOENT => return Ok(()),
            Some(Err(refused)) => return Err(refused),
            _ => {}
        }
    }
    Ok(())
}
