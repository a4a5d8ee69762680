//! The operations that lead from what is to what should be.

use crate::merge::{Side, merge};
use crate::routes::{route_ops, rule_ops};
use crate::{Address, Desired, Leftover, Link, Observed, ObservedLink, Op, peers};

/// The ordered operations that make `observed` what `desired` says. None where nothing is to be done: what is
/// already right is not touched, what is not ours is left alone.
///
/// All lists must be sorted as their types say; the work is then linear in their length.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let links = LinkOps::new(desired, observed);
    let routes = route_ops(desired, &observed.routes, &links.lost());
    let (delete_rules, add_rules) = rule_ops(&desired.rules, &observed.rules);

    let mut ops = sysctl_ops(desired, observed);
    ops.extend(delete_rules);
    ops.extend(routes.delete);
    ops.extend(links.create);
    firewall_ops(desired, observed, &mut ops);
    if let Some(device) = &desired.device {
        ops.extend(peers::device_ops(device, observed.device.as_ref()));
    }
    ops.extend(links.addresses);
    ops.extend(links.state);
    ops.extend(routes.set);
    ops.extend(add_rules);
    ops.extend(links.remove);
    ops.extend(observed.leftovers.iter().filter_map(|leftover| match leftover {
        Leftover::Chain { ipv6, chain } => Some(Op::RemoveChain { ipv6: *ipv6, chain: *chain }),
        Leftover::HalfForward(_) => None,
    }));
    if let (Some(cni), Some(now)) = (&desired.cni, &observed.cni)
        && cni != now
    {
        ops.push(Op::WriteCni(cni.clone()));
    }
    ops
}

/// Parameters that the kernel has with another value. One it does not have cannot be set.
fn sysctl_ops(desired: &Desired, observed: &Observed) -> Vec<Op> {
    desired
        .sysctls
        .iter()
        .filter(|(path, value)| observed.sysctls.get(*path).is_some_and(|now| now != *value))
        .map(|(path, value)| Op::SetSysctl { path: path.clone(), value: value.clone() })
        .collect()
}

fn firewall_ops(desired: &Desired, observed: &Observed, ops: &mut Vec<Op>) {
    let transaction = kilo_nftables::diff(observed.table.as_ref(), desired.table.as_ref());
    ops.extend(transaction.map(Op::Nftables));
    let wanted = |range| desired.forward.binary_search(range).is_ok();
    let mut delete: Vec<Op> = Vec::new();
    for leftover in &observed.leftovers {
        if let Leftover::HalfForward(range) = leftover
            && !wanted(range)
        {
            delete.push(Op::DeleteForward(*range));
        }
    }
    for side in merge(&desired.forward, &observed.forward, |a, b| a.cmp(b)) {
        match side {
            Side::Left(range) => ops.push(Op::AddForward(*range)),
            Side::Right(range) => delete.push(Op::DeleteForward(*range)),
            Side::Both(..) => {}
        }
    }
    ops.append(&mut delete);
}

/// What is to be done about links, by the time it is done.
#[derive(Default)]
struct LinkOps {
    create: Vec<Op>,
    addresses: Vec<Op>,
    state: Vec<Op>,
    remove: Vec<Op>,
}

impl LinkOps {
    fn new(desired: &Desired, observed: &Observed) -> Self {
        let mut ops = Self::default();
        for side in merge(&desired.links, &observed.links, |a, b| a.dev.cmp(&b.dev)) {
            match side {
                Side::Left(link) => ops.missing(link),
                Side::Both(link, now) => ops.present(link, now),
                Side::Right(_) => {}
            }
        }
        for (dev, name) in &desired.remove_links {
            if observed.links.binary_search_by_key(dev, |link| link.dev).is_ok() {
                ops.remove.push(Op::DeleteLink { dev: *dev, name: name.clone() });
            }
        }
        ops
    }

    /// A link that is not there. Where it is not ours to make, what is wanted of it is still asked for, so
    /// that the host says what is missing.
    fn missing(&mut self, link: &Link) {
        if link.create {
            let (dev, name) = (link.dev, link.name.clone());
            self.create.push(Op::CreateLink { dev, name, kind: link.kind, mtu: link.mtu });
        }
        for &net in link.addresses.iter().flatten() {
            self.addresses.push(Op::AddAddress(Address { dev: link.dev, net }));
        }
        if link.up {
            self.state.push(Op::SetUp(link.dev));
        }
    }

    fn present(&mut self, link: &Link, now: &ObservedLink) {
        if let Some(mtu) = link.mtu.filter(|&mtu| mtu != now.mtu) {
            self.create.push(Op::SetMtu(link.dev, mtu));
        }
        if let Some(addresses) = &link.addresses {
            let mut add = Vec::new();
            // The old address goes first: of two in one subnet the later is a secondary, which the kernel
            // removes together with the first.
            for side in merge(addresses, &now.addresses, |a, b| a.cmp(b)) {
                match side {
                    Side::Left(&net) => add.push(Op::AddAddress(Address { dev: link.dev, net })),
                    Side::Right(&net) => {
                        self.addresses.push(Op::DeleteAddress(Address { dev: link.dev, net }));
                    }
                    Side::Both(..) => {}
                }
            }
            self.addresses.append(&mut add);
        }
        match (link.up, now.up) {
            (true, false) => self.state.push(Op::SetUp(link.dev)),
            (false, true) => self.state.push(Op::SetDown(link.dev)),
            (true, true) | (false, false) => {}
        }
    }

    /// The addresses that go, each with routes that the kernel drops together with it.
    fn lost(&self) -> Vec<Address> {
        let deleted = |op: &Op| if let Op::DeleteAddress(address) = op { Some(*address) } else { None };
        self.addresses.iter().filter_map(deleted).collect()
    }
}
