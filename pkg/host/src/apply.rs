//! Carrying out operations: neighbours of a kind together where that is faster, each with its own answer.

use ipnet::IpNet;
use kilo_agent::HostError;
use kilo_state::{Dev, LinkKind, Op, Route, Rule};

use crate::error::{fatal, io, refused, retry};
use crate::host::LinuxHost;
use crate::netlink::monitor::Doing;
use crate::netlink::route::{Action, KernelRoute};
use crate::netlink::rule::KernelRule;
use crate::netlink::socket::Refused;
use crate::netlink::{address, link, nftables, route, rule};
use crate::observe::Roles;
use crate::{cni, iptables_forward, leftovers, sysctl};

/// What the kernel without IPIP says, in words that help.
const NO_IPIP: &str = "the kernel has no IPIP tunnels (module \"ipip\"); use --encapsulate=never, or load it";

/// What [`Op::RemoveChain`] is about.
const NAMES: &str = "the iptables chains of another Kilo";

/// Operations that are carried out together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Routes,
    Peers,
    Single,
}

fn group(op: &Op) -> Group {
    match op {
        Op::AddRoute(_) | Op::ReplaceRoute(_) | Op::DeleteRoute(_) => Group::Routes,
        Op::RemovePeer(_) | Op::UpdatePeer(_) | Op::AddPeer(_) => Group::Peers,
        Op::SetSysctl { .. }
        | Op::CreateLink { .. }
        | Op::SetMtu(..)
        | Op::AddAddress(_)
        | Op::DeleteAddress(_)
        | Op::Nftables(_)
        | Op::AddForward(_)
        | Op::DeleteForward(_)
        | Op::ConfigureDevice(_)
        | Op::SetUp(_)
        | Op::SetDown(_)
        | Op::AddRule(_)
        | Op::DeleteRule(_)
        | Op::DeleteLink { .. }
        | Op::RemoveChain { .. }
        | Op::WriteCni(_) => Group::Single,
    }
}

impl LinuxHost {
    /// Carries out operations in this order.
    pub(crate) async fn carry_out(&mut self, ops: &[Op]) -> Vec<Result<(), HostError>> {
        let mut answers = Vec::with_capacity(ops.len());
        if ops.is_empty() {
            return answers;
        }
        let mut roles = match self.current_roles() {
            Ok(roles) => roles,
            Err(why) => {
                let failed = |_| Err(refused("listing links")(why.clone()));
                return ops.iter().map(failed).collect();
            }
        };
        let mut firewall = true;
        for run in ops.chunk_by(|a, b| group(a) == group(b) && group(a) != Group::Single) {
            match (group(&run[0]), &run[0]) {
                (Group::Routes, _) => answers.extend(self.change_routes(&roles, run)),
                (Group::Peers, _) => answers.extend(self.wireguard.apply_peers(run).await),
                (Group::Single, Op::RemoveChain { .. }) if !firewall => {
                    answers.push(Err(retry(
                        format!("removing {NAMES}"),
                        "ours could not be put in their place",
                    )));
                }
                (Group::Single, op) => {
                    let answer = self.one(&roles, op).await;
                    firewall &= answer.is_ok() || !matches!(op, Op::Nftables(_));
                    if let Op::CreateLink { .. } | Op::DeleteLink { .. } = op
                        && let Ok(now) = self.current_roles()
                    {
                        roles = now;
                    }
                    answers.push(answer);
                }
            }
            // With so much of our own to pass by, what others do would be lost.
            self.monitor.drain();
            tokio::task::yield_now().await;
        }
        answers
    }

    fn current_roles(&mut self) -> Result<Roles, Refused> {
        let links = link::list(&mut self.route)?;
        Ok(self.roles(&links))
    }

    fn change_routes(&mut self, roles: &Roles, ops: &[Op]) -> Vec<Result<(), HostError>> {
        // A route over a link that is not there cannot be added, and is gone already.
        let wanted: Vec<Option<(Action, KernelRoute)>> = ops
            .iter()
            .map(|op| {
                let (action, route) = route_op(op)?;
                Some((action, KernelRoute::ours(route, index(roles, route.dev)?)))
            })
            .collect();
        let changes: Vec<(Action, KernelRoute)> = wanted.iter().flatten().copied().collect();
        let ours_alone = |link: u32| matches!(roles.dev(link), Dev::WireGuard | Dev::Tunnel);
        // Before they are ours: somebody may replace one of them before the next line.
        let kept = changes.iter().filter(|(action, _)| *action != Action::Delete);
        self.monitor.known.routes.extend(kept.map(|(_, route)| (route.table, route.dst)));
        let monitor = &mut self.monitor;
        let answers = route::apply(&mut self.route, &changes, ours_alone, || monitor.drain());
        for ((action, route), answer) in changes.iter().zip(&answers) {
            if answer.is_ok() && *action == Action::Delete {
                self.monitor.known.routes.remove(&(route.table, route.dst));
            }
        }
        let mut answers = answers.into_iter();
        ops.iter()
            .zip(wanted)
            .map(|(op, wanted)| {
                let Some((action, route)) = route_op(op) else { return Ok(()) };
                match wanted.and_then(|_| answers.next()) {
                    Some(answer) => answer.map_err(|why| refused(route_text(roles, action, route))(why)),
                    None if action == Action::Delete => Ok(()),
                    None => Err(no_link(route_text(roles, action, route), route.dev)),
                }
            })
            .collect()
    }

    async fn one(&mut self, roles: &Roles, op: &Op) -> Result<(), HostError> {
        match op {
            Op::SetSysctl { path, value } => {
                let set = sysctl::set(path, value).map_err(io(format!("setting sysctl {path} to {value}")));
                if let (Ok(()), Some(known)) = (&set, self.monitor.known.sysctls.get_mut(&**path)) {
                    value.as_ref().clone_into(known);
                }
                set
            }
            Op::CreateLink { name, kind, mtu, .. } => self.create_link(name, *kind, *mtu).await,
            Op::SetMtu(dev, mtu) => {
                let action = format!("setting the MTU of {} to {mtu}", name(roles, *dev));
                self.on_link(roles, *dev, Doing::Change, action, |host, index| {
                    link::set_mtu(&mut host.route, index, *mtu)
                })
            }
            Op::SetUp(dev) => {
                let action = format!("bringing up {}", name(roles, *dev));
                self.on_link(roles, *dev, Doing::Up, action, |host, index| {
                    link::set_up(&mut host.route, index, true)
                })
            }
            Op::SetDown(dev) if index(roles, *dev).is_none() => Ok(()),
            Op::SetDown(dev) => {
                let action = format!("bringing down {}", name(roles, *dev));
                self.on_link(roles, *dev, Doing::Change, action, |host, index| {
                    link::set_up(&mut host.route, index, false)
                })
            }
            Op::AddAddress(new) => {
                let action = format!("adding address {} to {}", new.net, name(roles, new.dev));
                self.on_link(roles, new.dev, Doing::Add(new.net), action, |host, index| {
                    address::add(&mut host.route, index, new.net)
                })
            }
            Op::DeleteAddress(old) if index(roles, old.dev).is_none() => Ok(()),
            Op::DeleteAddress(old) => {
                let action = format!("deleting address {} from {}", old.net, name(roles, old.dev));
                self.on_link(roles, old.dev, Doing::Change, action, |host, index| {
                    address::delete(&mut host.route, index, old.net)
                })
            }
            Op::Nftables(transaction) => {
                nftables::apply(&mut self.nftables, transaction).map_err(|(what, why)| {
                    refused(format!("changing nftables table {}: {what}", transaction.table))(why)
                })
            }
            Op::AddForward(accept) => {
                let action = format!("accepting {} in FORWARD", accept.0);
                iptables_forward::add(&mut self.nftables, accept).map_err(refused(action))
            }
            Op::DeleteForward(accept) => iptables_forward::delete(&mut self.nftables, accept)
                .map_err(refused(format!("no longer accepting {} in FORWARD", accept.0))),
            Op::ConfigureDevice(change) => self.wireguard.configure(change, &self.key).await,
            Op::AddRule(rule) => match kernel_rule(roles, rule) {
                Some(wanted) => rule::add(&mut self.route, &wanted)
                    .map_err(refused(format!("adding rule {}", rule_text(roles, rule)))),
                None => Err(no_link(format!("adding rule {}", rule_text(roles, rule)), Dev::WireGuard)),
            },
            Op::DeleteRule(rule) => match kernel_rule(roles, rule) {
                Some(gone) => rule::delete(&mut self.route, &gone)
                    .map_err(refused(format!("deleting rule {}", rule_text(roles, rule)))),
                // The rule names a link that is gone, and we cannot: the kernel takes the name only.
                None => self.delete_rule_of_missing_link(roles, rule),
            },
            Op::DeleteLink { dev, name } => self.delete_link(roles, *dev, name).await,
            Op::RemoveChain { ipv6, chain } => leftovers::remove(&mut self.nftables, *ipv6, *chain)
                .map_err(refused(format!("removing {NAMES}"))),
            Op::WriteCni(file) => {
                let written = cni::write(file, self.cni_seen.as_ref());
                if let Some(watch) = &mut self.cni_watch {
                    watch.absorb();
                }
                written.map_err(|why| retry(format!("writing pod ranges into {}", file.path), why))
            }
            Op::AddRoute(_)
            | Op::ReplaceRoute(_)
            | Op::DeleteRoute(_)
            | Op::RemovePeer(_)
            | Op::UpdatePeer(_)
            | Op::AddPeer(_) => Ok(()),
        }
    }

    /// Does something to a link of ours and lets the monitor know.
    fn on_link(
        &mut self,
        roles: &Roles,
        dev: Dev,
        doing: Doing,
        action: String,
        work: impl FnOnce(&mut Self, u32) -> Result<(), Refused>,
    ) -> Result<(), HostError> {
        let Some(index) = index(roles, dev) else { return Err(no_link(action, dev)) };
        let result = work(self, index).map_err(refused(action));
        if let Some(link) = roles.link(dev) {
            self.monitor.absorb(&link.name, doing);
        }
        result
    }

    async fn create_link(&mut self, name: &str, kind: LinkKind, mtu: Option<u32>) -> Result<(), HostError> {
        let result = match kind {
            LinkKind::WireGuard => self.wireguard.create(name, mtu).await,
            LinkKind::Ipip => self.create_ipip(name, mtu),
            LinkKind::Foreign => Err(retry(
                format!("using link {name}"),
                "there is no such link; another program has to make it",
            )),
        };
        self.monitor.absorb(name, Doing::Change);
        result
    }

    fn create_ipip(&mut self, name: &str, mtu: Option<u32>) -> Result<(), HostError> {
        use rustix::io::Errno;
        let action = format!("creating IPIP link {name}");
        match link::create_ipip(&mut self.route, name) {
            Ok(()) => {}
            Err(why) if matches!(why.errno, Errno::OPNOTSUPP | Errno::NODEV | Errno::NOENT) => {
                return Err(fatal(action, NO_IPIP));
            }
            Err(why) => return Err(refused(action)(why)),
        }
        let Some(mtu) = mtu else { return Ok(()) };
        let links = link::list(&mut self.route).map_err(refused("listing links"))?;
        match links.iter().find(|link| link.name == name) {
            Some(made) => link::set_mtu(&mut self.route, made.index, mtu)
                .map_err(refused(format!("setting the MTU of {name} to {mtu}"))),
            None => Err(retry(action, "the kernel says that it is there, but it is not")),
        }
    }

    async fn delete_link(&mut self, roles: &Roles, dev: Dev, name: &str) -> Result<(), HostError> {
        let result = match (dev, roles.link(dev)) {
            (Dev::WireGuard, _) => self.wireguard.delete().await,
            (_, Some(found)) if found.name == name => {
                let index = found.index;
                self.delete_or_clear(index).map_err(refused(format!("deleting link {name}")))
            }
            _ => Ok(()),
        };
        self.monitor.absorb(name, Doing::Remove);
        result
    }

    /// Deletes a link. The one that a tunnel's module makes for itself cannot be deleted, though the kernel says
    /// that it was: it loses its addresses and goes down instead.
    fn delete_or_clear(&mut self, index: u32) -> Result<(), Refused> {
        link::delete(&mut self.route, index)?;
        if !link::list(&mut self.route)?.iter().any(|link| link.index == index) {
            return Ok(());
        }
        for (_, net) in address::list(&mut self.route)?.into_iter().filter(|(of, _)| *of == index) {
            address::delete(&mut self.route, index, net)?;
        }
        link::set_up(&mut self.route, index, false)
    }

    /// Removes a rule whose link has gone. The kernel keeps such rules by the name of the link.
    fn delete_rule_of_missing_link(&mut self, roles: &Roles, gone: &Rule) -> Result<(), HostError> {
        let action = || format!("deleting rule {}", rule_text(roles, gone));
        let ipv6 = gone.dst.addr().is_ipv6();
        let links = link::list(&mut self.route).map_err(refused(action()))?;
        let rules = rule::list(&mut self.route, ipv6).map_err(refused(action()))?;
        let same = |rule: &&KernelRule| {
            let missing = |name: &String| !links.iter().any(|link| link.name == *name);
            rule.src == gone.src && rule.dst == gone.dst && rule.iif.as_ref().is_some_and(missing)
        };
        for rule in rules.iter().filter(same) {
            rule::delete(&mut self.route, rule).map_err(refused(action()))?;
        }
        Ok(())
    }
}

/// The index of a link; `None` when it is not there.
fn index(roles: &Roles, dev: Dev) -> Option<u32> {
    match dev {
        Dev::Other(0) => None,
        Dev::Other(index) => Some(index),
        Dev::WireGuard | Dev::Private | Dev::Tunnel => Some(roles.link(dev)?.index),
    }
}

fn name(roles: &Roles, dev: Dev) -> String {
    match (roles.name(dev), dev) {
        (Some(name), _) => name.to_owned(),
        (None, Dev::WireGuard) => "the WireGuard link".to_owned(),
        (None, Dev::Private) => "the link with the private address".to_owned(),
        (None, Dev::Tunnel) => "the tunnel".to_owned(),
        (None, Dev::Other(index)) => format!("link {index}"),
    }
}

fn no_link(action: String, dev: Dev) -> HostError {
    let why = match dev {
        Dev::WireGuard => "there is no WireGuard link",
        Dev::Private => "there is no link with the private address",
        Dev::Tunnel => "there is no tunnel",
        Dev::Other(_) => "there is no such link",
    };
    retry(action, why)
}

fn route_op(op: &Op) -> Option<(Action, &Route)> {
    if let Op::AddRoute(route) = op {
        Some((Action::Add, route))
    } else if let Op::ReplaceRoute(route) = op {
        Some((Action::Replace, route))
    } else if let Op::DeleteRoute(route) = op {
        Some((Action::Delete, route))
    } else {
        None
    }
}

fn route_text(roles: &Roles, action: Action, route: &Route) -> String {
    let verb = match action {
        Action::Add => "adding",
        Action::Replace => "replacing",
        Action::Delete => "deleting",
    };
    let table = if route.table == kilo_state::TABLE { " in Kilo's table" } else { "" };
    format!("{verb} route {} via {}{table}", route.dst, name(roles, route.dev))
}

/// A rule with the name of its link; `None` when that is not there.
fn kernel_rule(roles: &Roles, rule: &Rule) -> Option<KernelRule> {
    let iif = match rule.iif {
        None => None,
        Some(dev) => Some(roles.name(dev)?.to_owned()),
    };
    Some(KernelRule { src: rule.src, dst: rule.dst, iif, table: rule.table })
}

fn rule_text(roles: &Roles, rule: &Rule) -> String {
    let src = rule.src.map_or_else(|| "all".to_owned(), |net: IpNet| net.to_string());
    let iif = rule.iif.map_or_else(String::new, |dev| format!(" from link {}", name(roles, dev)));
    format!("from {src} to {}{iif}", rule.dst)
}
