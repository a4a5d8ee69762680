//! The kernel's expressions as ours. What is not one of our forms, to the register, stays as it is: unknown.

use std::net::IpAddr;

use ipnet::IpNet;

use super::write::{FOUND, bits, ct_address};
use crate::attr::Attributes;
use crate::kernel::{
    REGISTER, VERDICT_REGISTER, bitwise, cmp, ct, data, fib, immediate, limit, log, lookup, meta, object,
    objref, payload, range, register, reject, rule, verdict,
};
use crate::load::Class;
use crate::range::address;
use crate::{
    Addresses, CtDirection, Direction, End, Expr, Family, Header, IfName, Load, Mark, TableFamily, Verdict,
};

/// An expression of the kernel's.
#[derive(Clone, Copy)]
struct Raw<'a> {
    name: &'a str,
    data: Attributes<'a>,
}

/// Reads the items of a rule's list.
pub(crate) fn read(table: TableFamily, list: Attributes<'_>) -> Vec<Expr> {
    let raws: Vec<Raw<'_>> = list
        .filter(|(number, _)| *number == rule::LIST_ITEM)
        .map(|(_, item)| Attributes(item))
        .map(|item| Raw {
            name: item.text(rule::EXPR_NAME).unwrap_or_default(),
            data: item.nest(rule::EXPR_DATA).unwrap_or(Attributes(&[])),
        })
        .collect();
    let mut exprs = Vec::new();
    let mut fixed = None;
    let mut rest = &raws[..];
    while let [first, more @ ..] = rest {
        let (expr, after) = read_family(table, rest, fixed)
            .or_else(|| read_one(rest, fixed))
            .unwrap_or_else(|| (Expr::Unknown { name: first.name.into(), data: first.data.0.into() }, more));
        fixed = expr.fixes().or(fixed);
        exprs.push(expr);
        rest = after;
    }
    exprs
}

type Read<'r, 'a, T> = Option<(T, &'r [Raw<'a>])>;

/// Reads a comparison of the packet's family, and what asks for it if it comes next.
fn read_family<'r, 'a>(table: TableFamily, raws: &'r [Raw<'a>], fixed: Option<Family>) -> Read<'r, 'a, Expr> {
    let (first, rest) = raws.split_first().filter(|(first, _)| first.name == "meta")?;
    let key = first.data.number(meta::KEY)?;
    if first.data.number(meta::DREG) != Some(REGISTER) {
        return None;
    }
    let ((op, value), rest) = read_cmp(rest)?;
    let family = [Family::V4, Family::V6].into_iter().find(|family| match table {
        TableFamily::Inet => key == meta::NFPROTO && *value == [family.protocol()],
        TableFamily::Bridge => key == meta::PROTOCOL && *value == family.ether_type().to_be_bytes(),
    });
    match (family, value) {
        (Some(family), _) if op == cmp::EQUAL => {
            let implied = read_one(rest, Some(family)).filter(|(expr, _)| expr.family() == Some(family));
            // What is compared again was asked for on its own.
            Some(implied.filter(|_| fixed != Some(family)).unwrap_or((Expr::NfProto(family), rest)))
        }
        (None, [high, low]) if op == cmp::EQUAL && key == meta::PROTOCOL => {
            Some((Expr::EtherType(u16::from_be_bytes([*high, *low])), rest))
        }
        _ => None,
    }
}

/// Reads one of our expressions from the front, in a rule that has compared the family already or not.
fn read_one<'r, 'a>(raws: &'r [Raw<'a>], fixed: Option<Family>) -> Read<'r, 'a, Expr> {
    let (first, rest) = raws.split_first()?;
    let one = |expr: Option<Expr>| Some((expr?, rest));
    match first.name {
        "meta" | "ct" => read_loaded(raws, fixed),
        "payload" => {
            let prefix = fixed.and_then(|family| read_prefix(raws, family));
            prefix.or_else(|| read_loaded(raws, fixed))
        }
        "fib" => read_fib(first, rest),
        "counter" => one(Some(Expr::Counter)),
        "objref" => one(read_objref(first)),
        "limit" => one(read_limit(first)),
        "log" => one(read_log(first)),
        "masq" => one(first.data.0.is_empty().then_some(Expr::Masquerade)),
        "reject" => one(read_reject(first)),
        "immediate" => read_immediate(first, rest),
        _ => None,
    }
}

/// Reads a load, into the register so many times four bytes behind the first.
fn read_load(raw: &Raw<'_>, words: u8, fixed: Option<Family>) -> Option<Load> {
    let (of, dreg) = match raw.name {
        "meta" => {
            let load = match raw.data.number(meta::KEY)? {
                meta::IIFNAME => Load::Link(Direction::In),
                meta::OIFNAME => Load::Link(Direction::Out),
                meta::L4PROTO => Load::L4Proto,
                meta::MARK => Load::Mark,
                _ => return None,
            };
            (load, meta::DREG)
        }
        "ct" => (read_ct(raw.data)?, ct::DREG),
        "payload" => {
            let header = match raw.data.number(payload::BASE)? {
                payload::LINK_HEADER => Header::Link,
                payload::NETWORK_HEADER => Header::Network,
                payload::TRANSPORT_HEADER => Header::Transport,
                _ => return None,
            };
            let offset = u8::try_from(raw.data.number(payload::OFFSET)?).ok()?;
            let len = u8::try_from(raw.data.number(payload::LEN)?).ok().filter(|len| *len <= 16)?;
            (Load::at(header, offset, len, fixed), payload::DREG)
        }
        _ => return None,
    };
    (raw.data.number(dreg) == Some(register(words))).then_some(of)
}

fn read_ct(data: Attributes<'_>) -> Option<Load> {
    let key = data.number(ct::KEY)?;
    let direction = match data.get(ct::DIRECTION) {
        None => None,
        Some([0]) => Some(CtDirection::Original),
        Some([1]) => Some(CtDirection::Reply),
        Some(_) => return None,
    };
    Some(match (key, direction) {
        (ct::MARK, None) => Load::CtMark,
        (ct::STATE, None) => Load::CtState,
        (ct::PROTO_SRC, Some(direction)) => Load::CtPort(direction, End::Source),
        (ct::PROTO_DST, Some(direction)) => Load::CtPort(direction, End::Destination),
        (ct::PROTOCOL, _) => Load::CtProtocol,
        (key, Some(direction)) => [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| [(family, End::Source), (family, End::Destination)])
            .find(|(family, end)| ct_address(*family, *end) == key)
            .map(|(family, end)| Load::CtAddress(direction, family, end))?,
        _ => return None,
    })
}

/// Reads what begins with one load or several.
fn read_loaded<'r, 'a>(raws: &'r [Raw<'a>], fixed: Option<Family>) -> Read<'r, 'a, Expr> {
    let mut keys = Vec::new();
    let mut words = 0u8;
    let mut rest = raws;
    while let [first, more @ ..] = rest
        && let Some(load) = read_load(first, words, fixed)
    {
        words = words.checked_add(load.width().div_ceil(4)).filter(|words| *words <= 16)?;
        keys.push(load);
        rest = more;
    }
    if let [mark, ids, chains, rest @ ..] = rest
        && let Some(dispatch) = read_dispatch(&keys, mark, ids, chains)
    {
        return Some((dispatch, rest));
    }
    if rest.first()?.name == "lookup" {
        return read_lookups(keys, rest);
    }
    match keys[..] {
        [of] => read_comparison(of, rest),
        _ => None,
    }
}

/// Reads a lookup of a key that is loaded.
fn read_lookups<'r, 'a>(keys: Vec<Load>, raws: &'r [Raw<'a>]) -> Read<'r, 'a, Expr> {
    let (first, rest) = raws.split_first()?;
    let (set, to, negated) = read_lookup(first, REGISTER)?;
    match (to, negated) {
        (None, _) => {
            let expr = Expr::Lookup { keys, set: set.into(), negated };
            Some((expr.normal(None), rest))
        }
        (Some(VERDICT_REGISTER), false) => Some((Expr::Vmap { keys, map: set.into() }, rest)),
        _ => None,
    }
}

/// Reads a lookup of a key that is loaded, and a second one for what the first finds.
fn read_dispatch(keys: &[Load], mark: &Raw<'_>, ids: &Raw<'_>, chains: &Raw<'_>) -> Option<Expr> {
    let number = FOUND + 1;
    (read_load(mark, number, None)? == Load::Mark).then_some(())?;
    let (ids, to, false) = read_lookup(ids, REGISTER)? else { return None };
    let (chains, Some(VERDICT_REGISTER), false) = read_lookup(chains, register(number))? else { return None };
    let dispatch = || Expr::Dispatch { keys: keys.to_vec(), ids: ids.into(), chains: chains.into() };
    (to == Some(register(FOUND))).then(dispatch)
}

/// The set that a lookup looks in, the register for what it finds, and whether it must not find anything.
fn read_lookup<'a>(raw: &Raw<'a>, from: u32) -> Option<(&'a str, Option<u32>, bool)> {
    (raw.name == "lookup").then_some(())?;
    let flags = raw.data.number(lookup::FLAGS).unwrap_or(0);
    let plain = raw.data.number(lookup::SREG) == Some(from) && flags & !lookup::INVERTED == 0;
    let name = raw.data.text(lookup::SET)?;
    plain.then_some((name, raw.data.number(lookup::DREG), flags == lookup::INVERTED))
}

/// Reads what is done with one value in the first register: a mask, a comparison, or the way back into a mark.
fn read_comparison<'r, 'a>(of: Load, raws: &'r [Raw<'a>]) -> Read<'r, 'a, Expr> {
    let (first, rest) = raws.split_first()?;
    let width = usize::from(of.width());
    let mask = match first.name {
        "bitwise" => Some(read_bitwise(first, width)?),
        _ => None,
    };
    if let Some((mask, xor)) = mask
        && let Some((mark, rest)) = read_mark_set(rest)
    {
        let of_mark = mark.load() == of;
        let (mask, value) = (!bits_of(mask)?, bits_of(xor)?);
        return (of_mark && value & !mask == 0).then_some((Expr::SetMark { mark, mask, value }, rest));
    }
    let plain_mask = match mask {
        Some((mask, xor)) if xor.iter().all(|b| *b == 0) => Some(mask),
        Some(_) => return None,
        None => None,
    };
    match of.class() {
        Class::Number if plain_mask.is_none() => read_number(of, raws),
        Class::Bits => {
            let mask = plain_mask.map_or(Some(u32::MAX), bits_of)?;
            let ((op, value), rest) = read_cmp(if plain_mask.is_some() { rest } else { raws })?;
            let expr = Expr::Bits { of, mask, value: bits_of(value)?, negated: inequality(op)? };
            (value.len() == width).then(|| (expr.normal(None), rest))
        }
        Class::Address => {
            let family = if width == 4 { Family::V4 } else { Family::V6 };
            let ((op, value), rest) = read_cmp(if plain_mask.is_some() { rest } else { raws })?;
            let (prefix, len) = match plain_mask {
                Some(mask) => (prefix(family, mask)?, width),
                None => (u8::try_from(value.len() * 8).ok()?, value.len()),
            };
            let net = read_net(family, value, prefix).filter(|_| value.len() == len && len != 0)?;
            let negated = inequality(op)?;
            Some((Expr::Net { of, net, negated }.normal(None), rest))
        }
        Class::Other if plain_mask.is_none() => {
            let ((op, value), rest) = read_cmp(raws)?;
            let negated = inequality(op)?;
            if let Load::Link(direction) = of {
                let name = IfName::from_padded(value).filter(|_| value.len() == width)?;
                return Some((Expr::Link { direction, name, negated }, rest));
            }
            let address = value.try_into().ok().filter(|_| of == Load::EtherSource)?;
            Some((Expr::EtherSource { address, negated }, rest))
        }
        Class::Number | Class::Other => None,
    }
}

/// The bits of a register of one byte, or of four in the order of the host.
fn bits_of(bytes: &[u8]) -> Option<u32> {
    match bytes {
        [byte] => Some(u32::from(*byte)),
        other => other.try_into().ok().map(u32::from_ne_bytes),
    }
}

fn read_number<'r, 'a>(of: Load, raws: &'r [Raw<'a>]) -> Read<'r, 'a, Expr> {
    let value = |bytes: &[u8]| match (of.width(), bytes) {
        (1, [byte]) => Some(u16::from(*byte)),
        (2, [high, low]) => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    };
    let (raw, rest) = raws.split_first()?;
    let (first, last, negated, rest) = if raw.name == "range" {
        let plain = raw.data.number(range::SREG) == Some(REGISTER)
            && raw.data.number(range::OP) == Some(range::OUTSIDE);
        let end = |number| raw.data.nest(number)?.get(data::VALUE).and_then(value);
        let (first, last) = (end(range::FROM)?, end(range::TO)?);
        // Of one value there is a shorter form.
        (plain && first != last).then_some((first, last, true, rest))?
    } else {
        let ((op, bytes), rest) = read_cmp(raws)?;
        let first = value(bytes)?;
        if op == cmp::AT_LEAST {
            let ((op, bytes), rest) = read_cmp(rest)?;
            let last = value(bytes).filter(|last| op == cmp::AT_MOST && *last != first)?;
            (first, last, false, rest)
        } else {
            (first, first, inequality(op)?, rest)
        }
    };
    Some((Expr::Number { of, first, last, negated }.normal(None), rest))
}

/// Reads a comparison: the operation and the value.
fn read_cmp<'r, 'a>(raws: &'r [Raw<'a>]) -> Read<'r, 'a, (u32, &'a [u8])> {
    let (first, rest) = raws.split_first().filter(|(first, _)| first.name == "cmp")?;
    let op = first.data.number(cmp::OP)?;
    let value = first.data.nest(cmp::DATA)?.get(data::VALUE)?;
    (first.data.number(cmp::SREG) == Some(REGISTER)).then_some(((op, value), rest))
}

/// Whether a comparison asks for another value, if it asks for one or another.
fn inequality(op: u32) -> Option<bool> {
    match op {
        cmp::EQUAL => Some(false),
        cmp::NOT_EQUAL => Some(true),
        _ => None,
    }
}

/// Reads a comparison with a prefix of whole bytes, of which alone those are loaded.
fn read_prefix<'r, 'a>(raws: &'r [Raw<'a>], family: Family) -> Read<'r, 'a, Expr> {
    let (first, rest) = raws.split_first()?;
    let is = |number, value| first.data.number(number) == Some(value);
    if !is(payload::DREG, REGISTER) || !is(payload::BASE, payload::NETWORK_HEADER) {
        return None;
    }
    let offset = |end: &End| is(payload::OFFSET, family.offset(*end).into());
    let end = [End::Source, End::Destination].into_iter().find(offset)?;
    let len = u8::try_from(first.data.number(payload::LEN)?).ok().filter(|len| *len <= family.width())?;
    let ((op, value), rest) = read_cmp(rest)?;
    let net = read_net(family, value, len * 8).filter(|_| value.len() == usize::from(len))?;
    Some((Expr::Address { end, among: Addresses::Net(net), negated: inequality(op)? }, rest))
}

/// The network of a prefix whose first bytes are these.
fn read_net(family: Family, value: &[u8], prefix: u8) -> Option<IpNet> {
    let mut bytes = [0; 16];
    let start = 16 - usize::from(family.width());
    bytes.get_mut(start..start + value.len())?.copy_from_slice(value);
    let first: IpAddr = address(family, u128::from_be_bytes(bytes));
    let net = IpNet::new(first, prefix).ok()?;
    // With other bits set the comparison never holds, which no network says.
    (net == net.trunc()).then_some(net)
}

/// The prefix that a mask leaves, if it leaves one. The whole address needs no mask.
fn prefix(family: Family, mask: &[u8]) -> Option<u8> {
    (0..family.width() * 8).find(|prefix| family.octets(family.mask(*prefix)) == mask)
}

/// The mask, and the bits that are turned around behind it.
fn read_bitwise<'a>(raw: &Raw<'a>, width: usize) -> Option<(&'a [u8], &'a [u8])> {
    let plain = raw.data.number(bitwise::SREG) == Some(REGISTER)
        && raw.data.number(bitwise::DREG) == Some(REGISTER)
        && raw.data.number(bitwise::LEN).is_some_and(|len| len as usize == width)
        && raw.data.number(bitwise::OP).is_none_or(|op| op == bitwise::MASK_XOR);
    let value = |number| raw.data.nest(number)?.get(data::VALUE).filter(|bytes| bytes.len() == width);
    plain.then_some((value(bitwise::MASK)?, value(bitwise::XOR)?))
}

/// Reads where a mark is set to what the first register holds.
fn read_mark_set<'r, 'a>(raws: &'r [Raw<'a>]) -> Read<'r, 'a, Mark> {
    let (first, rest) = raws.split_first()?;
    let is = |number, value| first.data.number(number) == Some(value);
    let mark = match first.name {
        "meta" if is(meta::KEY, meta::MARK) && is(meta::SREG, REGISTER) => Mark::Packet,
        "ct" if is(ct::KEY, ct::MARK) && is(ct::SREG, REGISTER) => Mark::Connection,
        _ => return None,
    };
    Some((mark, rest))
}

fn read_fib<'r, 'a>(first: &Raw<'a>, rest: &'r [Raw<'a>]) -> Read<'r, 'a, Expr> {
    let is = |number, value| first.data.number(number) == Some(value);
    let plain = is(fib::FLAGS, fib::SOURCE | fib::IIF | fib::PRESENT)
        && is(fib::RESULT, fib::OIF)
        && is(fib::DREG, REGISTER);
    let ((op, value), rest) = read_cmp(rest)?;
    (plain && op == cmp::EQUAL && value == [0; 4]).then_some((Expr::NoReturnPath, rest))
}

fn read_objref(raw: &Raw<'_>) -> Option<Expr> {
    let name = raw.data.text(objref::NAME)?;
    (raw.data.number(objref::TYPE) == Some(object::COUNTER)).then(|| Expr::CountIn(name.into()))
}

fn read_limit(raw: &Raw<'_>) -> Option<Expr> {
    let plain = raw.data.number(limit::TYPE).is_none_or(|of| of == limit::PACKETS)
        && raw.data.number(limit::FLAGS).is_none_or(|flags| flags == 0);
    let (packets, seconds) = (raw.data.long(limit::RATE)?, raw.data.long(limit::UNIT)?);
    let burst = raw.data.number(limit::BURST)?;
    let usual = plain && packets != 0 && seconds != 0 && burst != 0;
    usual.then_some(Expr::Limit { packets, seconds, burst })
}

fn read_log(raw: &Raw<'_>) -> Option<Expr> {
    let number = |number, usual| raw.data.get(number).is_none_or(|bytes| bytes.iter().all(|b| *b == usual));
    let plain = number(log::THRESHOLD, 0) && raw.data.get(log::LEVEL).is_none() && number(log::FLAGS, 0);
    let group = u16::from_be_bytes(raw.data.get(log::GROUP)?.try_into().ok()?);
    let prefix = raw.data.text(log::PREFIX).unwrap_or_default();
    plain.then(|| Expr::Log { group, prefix: prefix.into(), snaplen: raw.data.number(log::SNAPLEN) })
}

fn read_reject(raw: &Raw<'_>) -> Option<Expr> {
    let usual = raw.data.number(reject::TYPE) == Some(reject::ICMPX)
        && raw.data.get(reject::CODE) == Some(&[reject::ADMIN_PROHIBITED]);
    usual.then_some(Expr::Reject)
}

fn read_immediate<'r, 'a>(first: &Raw<'a>, rest: &'r [Raw<'a>]) -> Read<'r, 'a, Expr> {
    let value = first.data.nest(immediate::DATA)?;
    match first.data.number(immediate::DREG)? {
        VERDICT_REGISTER => Some((Expr::Verdict(read_verdict(value)?), rest)),
        REGISTER => {
            let (mark, rest) = read_mark_set(rest)?;
            let value = bits_of(value.get(data::VALUE).filter(|b| b.len() == bits(mark.load(), 0).len())?)?;
            Some((Expr::SetMark { mark, mask: u32::MAX, value }, rest))
        }
        _ => None,
    }
}

/// Reads a verdict from the data of an expression or of an element.
pub(crate) fn read_verdict(data: Attributes<'_>) -> Option<Verdict> {
    let verdict = data.nest(data::VERDICT)?;
    let chain = || verdict.text(data::VERDICT_CHAIN).map(Into::into);
    Some(match verdict.number(data::VERDICT_CODE)? {
        verdict::ACCEPT => Verdict::Accept,
        verdict::DROP => Verdict::Drop,
        verdict::RETURN => Verdict::Return,
        verdict::JUMP => Verdict::Jump(chain()?),
        verdict::GOTO => Verdict::Goto(chain()?),
        _ => return None,
    })
}
