//! Routes and rules. Of routes to one destination in one table one is ours; what others put beside it stays.

use std::cmp::Ordering;

use crate::merge::{Side, merge};
use crate::{Address, Desired, ObservedRoute, Op, PROTOCOL, Route, Rule};

/// What is to be done about routes.
#[derive(Debug, Default)]
pub(crate) struct RouteOps {
    /// Ours that nobody wants any more.
    pub delete: Vec<Op>,
    /// Those to add or replace.
    pub set: Vec<Op>,
}

fn identity(route: &Route) -> (u32, ipnet::IpNet) {
    (route.table, route.dst)
}

/// Compares routes. `lost` are addresses about to be removed: routes that the kernel drops with them are put
/// back even though they are right as yet.
pub(crate) fn route_ops(desired: &Desired, observed: &[ObservedRoute], lost: &[Address]) -> RouteOps {
    let is_kilos = |r: &ObservedRoute| r.is_kilos(&desired.neighbours);
    let mut ops = RouteOps::default();
    let groups = observed.chunk_by(|a, b| identity(&a.route) == identity(&b.route));
    let order = |want: &&Route, group: &&[ObservedRoute]| match group.first() {
        Some(first) => identity(want).cmp(&identity(&first.route)),
        None => Ordering::Less,
    };
    for side in merge(&desired.routes, groups, order) {
        match side {
            Side::Left(want) => ops.set.push(Op::AddRoute(*want)),
            Side::Right(group) => {
                let ours = group.iter().filter(|r| is_kilos(r));
                ops.delete.extend(ours.map(|r| Op::DeleteRoute(r.route)));
            }
            Side::Both(want, group) => one_destination(want, group, lost, is_kilos, &mut ops),
        }
    }
    ops
}

/// A wanted route and all that lead to the same destination. Another of our own beside the right one goes; a
/// wrong one is replaced in place, so that there is always a route, whoever made it.
fn one_destination(
    want: &Route,
    group: &[ObservedRoute],
    lost: &[Address],
    is_kilos: impl Fn(&ObservedRoute) -> bool,
    ops: &mut RouteOps,
) {
    let right = |r: &ObservedRoute| r.route == *want && r.protocol == PROTOCOL;
    let is_there = group.iter().any(right);
    // Of several that are there one is replaced; ours, if there is any.
    let replaced = group.iter().position(ObservedRoute::is_ours).unwrap_or(0);
    let stays = |at: usize, r: &ObservedRoute| right(r) || (!is_there && at == replaced);
    let wrong: Vec<Route> = group
        .iter()
        .enumerate()
        .filter(|(at, r)| is_kilos(r) && !stays(*at, r))
        .map(|(_, r)| r.route)
        .collect();
    ops.delete.extend(wrong.iter().map(|route| Op::DeleteRoute(*route)));
    // What differs by its protocol alone takes the right one along when it goes.
    let alike = wrong.contains(want);
    if !is_there || alike || lost.iter().any(|address| goes_with(want, address)) {
        ops.set.push(Op::ReplaceRoute(*want));
    }
}

/// Whether the kernel may drop a route when an address goes: it was the source, or the last one of its link.
fn goes_with(route: &Route, address: &Address) -> bool {
    let same_family = route.dst.addr().is_ipv4() == address.net.addr().is_ipv4();
    route.src == Some(address.net.addr()) || (route.dev == address.dev && same_family)
}

/// Compares rules: those to delete and those to add.
pub(crate) fn rule_ops(desired: &[Rule], observed: &[Rule]) -> (Vec<Op>, Vec<Op>) {
    let (mut delete, mut add) = (Vec::new(), Vec::new());
    for side in merge(desired, observed, |a, b| a.cmp(b)) {
        match side {
            Side::Left(rule) => add.push(Op::AddRule(*rule)),
            Side::Right(rule) => delete.push(Op::DeleteRule(*rule)),
            Side::Both(..) => {}
        }
    }
    (delete, add)
}
