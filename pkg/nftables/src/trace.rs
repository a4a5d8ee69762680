//! What rules do to a packet: an interpreter of tables, for tests and for explanations. It knows tables as they
//! were read from the kernel and nothing of who made them.
//!
//! The packet's chains come one after the other, lower priorities first; those of one priority in the order of
//! the tables and of their names, where the kernel has the order in which they were made. Limits are never
//! exceeded, elements never time out, addresses are not translated.

mod packet;

use std::fmt;
use std::net::IpAddr;

pub use packet::{Connection, Packet, Tuple};

use crate::expr::bits;
use crate::{
    Addresses, Chain, Data, Elements, Expr, Family, Hook, Item, Key, Load, Mark, Policy, Rule, Set, SetKind,
    Table, TableFamily, Verdict, ct_state,
};
use packet::View;

/// Chains of these priorities and below come before connection tracking (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;
/// So many chains may be jumped into one from another (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// So many rules a packet is led past at most: the kernel has no circles, tables made by hand may.
const RULES: usize = 1_000_000;

/// Why a packet could not be traced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untraceable {
    /// A rule has an expression that only the kernel knows.
    #[error("rule {rule} of chain {chain} has an unknown expression {name}")]
    Unknown {
        /// The chain.
        chain: Box<str>,
        /// The place of the rule, from 0.
        rule: usize,
        /// The kernel's name of the expression.
        name: Box<str>,
    },
    /// A rule refers to a set that is not there, or is of another kind.
    #[error("rule {rule} of chain {chain} looks into set {set}, which does not fit")]
    Set {
        /// The chain.
        chain: Box<str>,
        /// The place of the rule, from 0.
        rule: usize,
        /// The set.
        set: Box<str>,
    },
    /// A verdict leads to a chain that is not there.
    #[error("there is no chain {0}")]
    Chain(Box<str>),
    /// Chains lead into each other deeper or longer than the kernel allows.
    #[error("chains lead into each other without end from chain {0}")]
    Circle(Box<str>),
}

/// What becomes of a packet at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Accepted,
    /// It is lost.
    Dropped,
    /// It is lost, and its sender is told.
    Rejected,
}

/// A rule whose matches all held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'t> {
    /// The table.
    pub table: &'t str,
    /// The chain.
    pub chain: &'t str,
    /// The place of the rule, from 0.
    pub place: usize,
    /// The rule.
    pub rule: &'t Rule,
}

/// `chain 3: rule`.
impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.chain, self.place, self.rule)
    }
}

/// What became of a packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace<'t> {
    /// Whether it goes on.
    pub outcome: Outcome,
    /// Its mark afterwards.
    pub mark: u32,
    /// The mark of its connection afterwards, if it has one.
    pub ct_mark: Option<u32>,
    /// The named counters that counted it, in order.
    pub counters: Vec<&'t str>,
    /// The prefixes it was logged with, in order.
    pub logged: Vec<&'t str>,
    /// The rules it passed, in order.
    pub rules: Vec<Step<'t>>,
}

/// Leads a packet past a hook: through all base chains of tables of this family.
pub fn trace<'t>(
    tables: &'t [Table],
    family: TableFamily,
    hook: Hook,
    packet: &Packet,
) -> Result<Trace<'t>, Untraceable> {
    let mut chains: Vec<(i32, &'t Table, &'t str, &'t Chain, Policy)> = tables
        .iter()
        .filter(|table| table.family == family)
        .flat_map(|table| table.chains.iter().map(move |(name, chain)| (table, name, chain)))
        .filter_map(|(table, name, chain)| {
            let base = chain.base.as_ref().filter(|base| base.hook == hook)?;
            Some((base.priority, table, &**name, chain, base.policy))
        })
        .collect();
    chains.sort_by_key(|(priority, ..)| *priority);
    let mut walk = Walk {
        trace: Trace {
            outcome: Outcome::Accepted,
            mark: packet.mark,
            ct_mark: packet.connection.map(|connection| connection.mark),
            counters: Vec::new(),
            logged: Vec::new(),
            rules: Vec::new(),
        },
        packet,
        steps: 0,
        key: Vec::new(),
    };
    for (priority, table, name, chain, policy) in chains {
        let tracked = !matches!(hook, Hook::Prerouting | Hook::Output) || priority > CONNTRACK;
        walk.trace.outcome = walk.base_chain(table, (name, chain), policy, tracked)?;
        if walk.trace.outcome != Outcome::Accepted {
            break;
        }
    }
    Ok(walk.trace)
}

/// What a rule says when it has come to its end.
enum Said<'t> {
    /// Nothing: the next rule.
    Nothing,
    /// What becomes of the packet.
    Verdict(&'t Verdict),
    Masqueraded,
    Rejected,
}

struct Walk<'t, 'p> {
    trace: Trace<'t>,
    packet: &'p Packet,
    /// Rules so far.
    steps: usize,
    /// Registers.
    key: Vec<u8>,
}

/// A place in a chain: its name, its rules, and the next of them.
type Cursor<'t> = (&'t str, &'t [Rule], usize);

impl<'t> Walk<'t, '_> {
    fn base_chain(
        &mut self,
        table: &'t Table,
        (name, chain): (&'t str, &'t Chain),
        policy: Policy,
        tracked: bool,
    ) -> Result<Outcome, Untraceable> {
        let policy = match policy {
            Policy::Accept => Outcome::Accepted,
            Policy::Drop => Outcome::Dropped,
        };
        let mut stack: Vec<Cursor<'t>> = Vec::new();
        let mut here: Cursor<'t> = (name, &chain.rules, 0);
        loop {
            let (name, rules, place) = here;
            let Some(rule) = rules.get(place) else {
                match stack.pop() {
                    Some(caller) => here = caller,
                    None => return Ok(policy),
                }
                continue;
            };
            here.2 += 1;
            self.steps += 1;
            if self.steps > RULES {
                return Err(Untraceable::Circle(name.into()));
            }
            let step = Step { table: &table.name, chain: name, place, rule };
            let verdict = match self.rule(table, step, tracked)? {
                Said::Nothing => continue,
                Said::Masqueraded => return Ok(Outcome::Accepted),
                Said::Rejected => return Ok(Outcome::Rejected),
                Said::Verdict(verdict) => verdict,
            };
            let enter = |chain: &'t str| {
                let found = table.chains.get_key_value(chain);
                let (name, chain) = found.ok_or_else(|| Untraceable::Chain(chain.into()))?;
                Ok((&**name, &chain.rules[..], 0))
            };
            match verdict {
                Verdict::Accept => return Ok(Outcome::Accepted),
                Verdict::Drop => return Ok(Outcome::Dropped),
                Verdict::Return => here.2 = rules.len(),
                Verdict::Goto(chain) => here = enter(chain)?,
                Verdict::Jump(chain) => {
                    stack.push(here);
                    if stack.len() > DEPTH {
                        return Err(Untraceable::Circle(name.into()));
                    }
                    here = enter(chain)?;
                }
            }
        }
    }

    /// Carries a rule out up to where it ends.
    fn rule(&mut self, table: &'t Table, step: Step<'t>, tracked: bool) -> Result<Said<'t>, Untraceable> {
        let mut said = Said::Nothing;
        for expr in step.rule.exprs() {
            match self.expr(table, step, expr, tracked)? {
                None => return Ok(Said::Nothing),
                Some(Said::Nothing) => {}
                Some(ends) => {
                    said = ends;
                    break;
                }
            }
        }
        self.trace.rules.push(step);
        Ok(said)
    }

    /// Carries an expression out; `None` where the rule ends with it.
    fn expr(
        &mut self,
        table: &'t Table,
        step: Step<'t>,
        expr: &'t Expr,
        tracked: bool,
    ) -> Result<Option<Said<'t>>, Untraceable> {
        let connection = self.packet.connection.filter(|_| tracked);
        let connection = connection.map(|c| Connection { mark: self.trace.ct_mark.unwrap_or(c.mark), ..c });
        let view = View {
            packet: self.packet,
            mark: self.trace.mark,
            connection,
            state: if tracked { self.packet.state } else { ct_state::INVALID },
        };
        if expr.family().is_some_and(|family| self.packet.family() != Some(family)) {
            return Ok(None);
        }
        let key = &mut self.key;
        key.clear();
        let holds = |holds: bool| Ok(holds.then_some(Said::Nothing));
        let missing =
            |set: &str| Untraceable::Set { chain: step.chain.into(), rule: step.place, set: set.into() };
        let find = |name: &str, key: &[u8]| {
            let set = table.sets.get(name).ok_or_else(|| missing(name))?;
            find(set, key).map_err(|Misfit| missing(name))
        };
        match expr {
            Expr::NfProto(family) => holds(self.packet.family() == Some(*family)),
            Expr::EtherType(number) => holds(self.packet.ether_type == *number),
            Expr::L4Proto(protocol) => holds(compare(&view, Load::L4Proto, key, |v| v == [*protocol])),
            Expr::Link { direction, name, negated } => {
                let is = |v: &[u8]| (v == name.padded()) != *negated;
                holds(compare(&view, Load::Link(*direction), key, is))
            }
            Expr::EtherSource { address, negated } => {
                holds(compare(&view, Load::EtherSource, key, |v| (v == address) != *negated))
            }
            Expr::Address { end, among: Addresses::Net(net), negated } => {
                let of = Load::Address(Family::of(net.addr()), *end);
                holds(compare(&view, of, key, |v| address(v).is_some_and(|ip| net.contains(&ip) != *negated)))
            }
            Expr::Address { end, among: Addresses::Set(family, set), negated } => {
                if view.load(Load::Address(*family, *end), key).is_none() {
                    return Ok(None);
                }
                holds(find(set, key)?.is_some() != *negated)
            }
            Expr::Net { of, net, negated } => holds(compare(&view, *of, key, |v| {
                address(v).is_some_and(|ip| net.contains(&ip) != *negated)
            })),
            Expr::Number { of, first, last, negated } => {
                let inside = |v: &[u8]| {
                    let number = v.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
                    (u32::from(*first)..=u32::from(*last)).contains(&number) != *negated
                };
                holds(compare(&view, *of, key, inside))
            }
            Expr::Bits { of, mask, value, negated } => {
                let (mask, value) = (bits(*of, *mask), bits(*of, *value));
                let equal =
                    |v: &[u8]| v.iter().zip(&mask).map(|(v, mask)| v & mask).eq(value.iter().copied());
                holds(compare(&view, *of, key, |v| equal(v) != *negated))
            }
            Expr::NoReturnPath => holds(!self.packet.returns),
            Expr::Lookup { keys, set, negated } => match load_all(&view, keys, key) {
                Some(()) => holds(find(set, key)?.is_some() != *negated),
                None => Ok(None),
            },
            Expr::Vmap { keys, map } => match load_all(&view, keys, key) {
                Some(()) => match find(map, key)? {
                    Some(Found::Data(Data::Verdict(verdict))) => Ok(Some(Said::Verdict(verdict))),
                    Some(_) => Err(missing(map)),
                    None => Ok(None),
                },
                None => Ok(None),
            },
            Expr::Dispatch { keys, ids, chains } => {
                let Some(()) = load_all(&view, keys, key) else { return Ok(None) };
                let id = match find(ids, key)? {
                    Some(Found::Data(Data::Integer(id))) => id.to_ne_bytes(),
                    Some(_) => return Err(missing(ids)),
                    None => return Ok(None),
                };
                match find(chains, &id)? {
                    Some(Found::Data(Data::Verdict(verdict))) => Ok(Some(Said::Verdict(verdict))),
                    Some(_) => Err(missing(chains)),
                    None => Ok(None),
                }
            }
            Expr::SetMark { mark, mask, value } => {
                let set = |mark: &mut u32| *mark = *mark & !mask | value;
                match mark {
                    Mark::Packet => set(&mut self.trace.mark),
                    Mark::Connection if tracked => self.trace.ct_mark.iter_mut().for_each(set),
                    Mark::Connection => {}
                }
                holds(true)
            }
            Expr::CountIn(name) => {
                self.trace.counters.push(name);
                holds(true)
            }
            Expr::Log { prefix, .. } => {
                self.trace.logged.push(prefix);
                holds(true)
            }
            Expr::Counter | Expr::Limit { .. } => holds(true),
            Expr::Masquerade => Ok(Some(Said::Masqueraded)),
            Expr::Reject => Ok(Some(Said::Rejected)),
            Expr::Verdict(verdict) => Ok(Some(Said::Verdict(verdict))),
            Expr::Unknown { name, .. } => {
                Err(Untraceable::Unknown { chain: step.chain.into(), rule: step.place, name: name.clone() })
            }
        }
    }
}

/// Whether a value is there and as it should be.
fn compare(view: &View<'_>, of: Load, to: &mut Vec<u8>, is: impl FnOnce(&[u8]) -> bool) -> bool {
    view.load(of, to).is_some() && is(to)
}

/// Loads the parts of a key; of several, each is filled up to four bytes.
fn load_all(view: &View<'_>, keys: &[Load], to: &mut Vec<u8>) -> Option<()> {
    for key in keys {
        view.load(*key, to)?;
        if keys.len() > 1 {
            to.resize(to.len().next_multiple_of(4), 0);
        }
    }
    Some(())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// What a set has for a key.
enum Found<'t> {
    Nothing,
    Data(&'t Data),
}

/// A key that is none of the set's.
struct Misfit;

/// Looks a key up: the work is that of a search.
fn find<'t>(set: &'t Set, key: &[u8]) -> Result<Option<Found<'t>>, Misfit> {
    let SetKind::Known(of) = set.kind else { return Err(Misfit) };
    // A link without a name is no key of any set.
    let Some(key) = of.key().read(key) else {
        return if of.key().fits(key) { Ok(None) } else { Err(Misfit) };
    };
    let data = |item: &'t Item| Found::Data(&item.data);
    match (&set.elements, key) {
        (Elements::Exact(items), key) => Ok(items.get(&key).map(data)),
        (Elements::Ranges(ranges), Key::Address(ip)) => Ok(ranges.contains(ip).then_some(Found::Nothing)),
        (Elements::Intervals(items), Key::Address(ip)) => {
            let before = items.range(..=crate::range::IpRange::from_to_last(ip)).next_back();
            Ok(before
                .filter(|(range, _)| ip <= range.last() && range.family() == Family::of(ip))
                .map(|(_, i)| data(i)))
        }
        (Elements::Ranges(_) | Elements::Intervals(_), _) => Err(Misfit),
    }
}
