//! What others change. The kernel tells every change of the namespace to every listener; of that only what
//! touches this agent's work wakes it, and never its own changes.
//!
//! Routes, rules and nftables objects come with the port of the socket that asked for the change. Links and
//! IPv6 addresses come without on most kernels, so for these the monitor knows what the agent knows, and an
//! event that tells nothing new is dropped, and so is one of a kernel parameter. The same goes for the destinations
//! of our routes: somebody who replaces one is told of only as a new route.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use ipnet::IpNet;
use kilo_agent::HostEvent;
use kilo_state::{PROTOCOL, PROTOCOL_STATIC, TABLE};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::io::Errno;

use super::culprit::{Culprits, Thing, Who};
use super::link::LinkState;
use super::socket::{Message, enlarge, messages};
use super::{address, link, nftables, parameter, route, rule};

/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV6_RULE`,
/// `_IPV4_NETCONF`, `_IPV6_NETCONF`.
const ROUTE_GROUPS: [u32; 9] = [1, 5, 7, 8, 9, 11, 19, 24, 25];
/// `NFNLGRP_NFTABLES`.
pub(crate) const NFTABLES_GROUP: u32 = 7;
/// A datagram of notifications is one message, and a link's is the largest.
const RECEIVE: usize = 64 << 10;
/// What is received in one go; more than the socket holds at once.
const DRAIN: usize = 32 << 10;
/// How long to wait before the state is read again when nothing can be heard.
const BROKEN: Duration = Duration::from_secs(5);

/// What the agent knows of the network, which is what it need not be told.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Links by index.
    pub links: BTreeMap<u32, LinkState>,
    /// Addresses of all links.
    pub addresses: BTreeSet<(u32, IpNet)>,
    /// Table and destination of the routes that are ours.
    pub routes: BTreeSet<(u32, IpNet)>,
    /// Kernel parameters that a plan may name.
    pub sysctls: BTreeMap<String, String>,
}

/// Which links and tables are looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interest {
    /// The WireGuard link.
    pub wireguard: String,
    /// The tunnel.
    pub tunnel: String,
    /// The links of the private address, of the default route and of a CNI.
    pub others: BTreeSet<String>,
    /// Our nftables table.
    pub table: String,
    /// Whether rules of ours stand in the FORWARD chains of iptables-nft.
    pub forward: bool,
}

/// What this agent did to a link. An event that contradicts it is somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Made it, or changed something about it.
    Change,
    /// Brought it up.
    Up,
    /// Gave it an address.
    Add(IpNet),
    /// Removed it.
    Remove,
}

/// The listener.
pub(crate) struct Monitor {
    route: TokioSocket,
    nftables: TokioSocket,
    buffer: Vec<u8>,
    /// What has happened since it was last asked.
    pending: BTreeSet<HostEvent>,
    /// The link that this agent is at work on.
    absorbing: Option<(String, Doing)>,
    default_changed: bool,
    /// Ports of the sockets through which this agent changes things.
    own_ports: [u32; 2],
    /// Which of the two firewalls the transaction touched that is being told, and the port it came from.
    transaction: (BTreeSet<Thing>, u32),
    pub culprits: Culprits,
    pub known: Known,
    pub interest: Interest,
}

impl Monitor {
    /// Listens in the namespace of this thread.
    pub(crate) fn open(own_ports: [u32; 2], interest: Interest) -> io::Result<Self> {
        let listen = |protocol, groups: &[u32]| {
            let mut socket = TokioSocket::new(protocol)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            enlarge(socket.socket_ref());
            for group in groups {
                // A kernel without IPv6 has its groups all the same.
                socket.socket_ref().add_membership(*group)?;
            }
            io::Result::Ok(socket)
        };
        Ok(Self {
            route: listen(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            nftables: listen(NETLINK_NETFILTER, &[NFTABLES_GROUP])?,
            buffer: Vec::with_capacity(RECEIVE),
            pending: BTreeSet::new(),
            absorbing: None,
            default_changed: true,
            own_ports,
            transaction: Default::default(),
            culprits: Culprits::default(),
            known: Known::default(),
            interest,
        })
    }

    /// Waits for a change by somebody else. Nothing is lost when the future is dropped: what has been received
    /// is taken note of before it waits again.
    pub(crate) async fn changed(&mut self) -> HostEvent {
        loop {
            self.drain();
            if let Some(event) = self.pending.pop_last() {
                return event;
            }
            let (route, nftables) = (&self.route, &self.nftables);
            let buffer = &mut self.buffer;
            buffer.clear();
            let (from_route, received) = poll_fn(|context| {
                if let Poll::Ready(received) = route.poll_recv(context, buffer) {
                    return Poll::Ready((true, received));
                }
                nftables.poll_recv(context, buffer).map(|received| (false, received))
            })
            .await;
            // From here to the next turn nothing waits, so that what was received cannot be lost.
            let received = received_as(received);
            if let Received::Broken = received {
                tracing::warn!("Changes by others cannot be heard of");
                tokio::time::sleep(BROKEN).await;
                return HostEvent::Lost;
            }
            let buffer = std::mem::take(&mut self.buffer);
            self.note(from_route, &received, &buffer);
            self.buffer = buffer;
        }
    }

    /// What has been told so far will be read now, and wakes nobody.
    pub(crate) fn forget(&mut self) {
        self.drain();
        self.pending.clear();
    }

    /// Takes note of what this agent did to a link, without waking for it.
    pub(crate) fn absorb(&mut self, link: &str, doing: Doing) {
        self.absorbing = Some((link.to_owned(), doing));
        self.drain();
        self.absorbing = None;
    }

    /// Whether the default routes may have changed since this was last asked.
    pub(crate) fn take_default_changed(&mut self) -> bool {
        self.drain();
        std::mem::take(&mut self.default_changed)
    }

    /// Takes note of all that has been told so far, as long as it is not told faster than this.
    pub(crate) fn drain(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for from_route in [true, false] {
            for _ in 0..DRAIN {
                let socket = if from_route { &self.route } else { &self.nftables };
                buffer.clear();
                let received = received_as(socket.socket_ref().recv(&mut buffer, 0).map(|_| ()));
                if matches!(received, Received::Nothing | Received::Broken) {
                    break;
                }
                self.note(from_route, &received, &buffer);
            }
        }
        self.buffer = buffer;
    }

    /// Takes note of one datagram.
    fn note(&mut self, from_route: bool, received: &Received, datagram: &[u8]) {
        match received {
            Received::Datagram if from_route => {
                for message in messages(datagram) {
                    if let Some(event) = self.route_event(&message) {
                        self.pending.insert(event);
                    }
                }
            }
            Received::Datagram => {
                for message in messages(datagram) {
                    self.firewall_event(&message);
                }
            }
            Received::Lost => {
                self.default_changed = true;
                self.pending.insert(HostEvent::Lost);
            }
            Received::Again | Received::Nothing | Received::Broken => {}
        }
    }

    fn is_watched(&self, name: &str) -> bool {
        name == self.interest.wireguard || name == self.interest.tunnel || self.interest.others.contains(name)
    }

    fn link_name(&self, index: u32) -> Option<&str> {
        self.known.links.get(&index).map(|link| link.name.as_str())
    }

    fn route_event(&mut self, message: &Message<'_>) -> Option<HostEvent> {
        match message.kind {
            link::RTM_NEWLINK | link::RTM_DELLINK => self.link_event(message),
            address::RTM_NEWADDR | address::RTM_DELADDR => self.address_event(message),
            route::RTM_NEWROUTE | route::RTM_DELROUTE => {
                self.is_route_event(message).then_some(HostEvent::Routing)
            }
            rule::RTM_NEWRULE | rule::RTM_DELRULE => {
                self.is_rule_event(message).then_some(HostEvent::Routing)
            }
            parameter::RTM_NEWNETCONF => self.is_parameter_event(message).then_some(HostEvent::Routing),
            _ => None,
        }
    }

    fn link_event(&mut self, message: &Message<'_>) -> Option<HostEvent> {
        let new = link::parse(message.payload)?;
        let index = new.index;
        let name = new.name.clone();
        let (old, gone) = if message.kind == link::RTM_DELLINK {
            (Some(self.known.links.remove(&index)?), true)
        } else {
            let old = self.known.links.insert(index, new.clone());
            if old.as_ref() == Some(&new) {
                return None;
            }
            (old, false)
        };
        let before = old.as_ref().map_or("", |old| old.name.as_str());
        if let Some((own, doing)) = &self.absorbing
            && (own == before || *own == name)
        {
            let foreign = match doing {
                Doing::Remove => false,
                Doing::Up => gone || (!new.up && old.is_some_and(|old| old.up)),
                Doing::Change | Doing::Add(_) => gone,
            };
            return foreign.then_some(HostEvent::Device);
        }
        let came_or_went = gone || old.as_ref().is_none_or(|old| old.name != name);
        let event = if came_or_went && [before, &name].contains(&self.interest.wireguard.as_str()) {
            HostEvent::Device
        } else if self.is_watched(before) || self.is_watched(&name) {
            HostEvent::Routing
        } else {
            return None;
        };
        self.culprits.note(Thing::Link(name), Who::Port(message.port));
        Some(event)
    }

    fn address_event(&mut self, message: &Message<'_>) -> Option<HostEvent> {
        let address = address::parse(message)?;
        let came = message.kind == address::RTM_NEWADDR;
        let news =
            if came { self.known.addresses.insert(address) } else { self.known.addresses.remove(&address) };
        let of = self.link_name(address.0).map(str::to_owned);
        let own = match &self.absorbing {
            Some((link, doing)) => of.as_ref() == Some(link) && (came || *doing != Doing::Add(address.1)),
            None => false,
        };
        let watched = of.as_deref().is_none_or(|name| self.is_watched(name));
        if !news || !watched || own {
            return None;
        }
        if let Some(name) = of {
            self.culprits.note(Thing::Link(name), Who::Port(message.port));
        }
        Some(HostEvent::Routing)
    }

    /// Whether somebody touched a route of ours, one in our table, or the way out.
    fn is_route_event(&mut self, message: &Message<'_>) -> bool {
        if self.own_ports.contains(&message.port) {
            return false;
        }
        let Some(route) = route::parse(message) else { return false };
        self.default_changed |= route.dst.prefix_len() == 0;
        let own_link = self
            .link_name(route.link)
            .is_some_and(|name| name == self.interest.wireguard || name == self.interest.tunnel);
        let ours = route.table == TABLE
            || route.protocol == PROTOCOL
            || (route.protocol == PROTOCOL_STATIC && own_link)
            || self.known.routes.contains(&(route.table, route.dst));
        if ours {
            let (protocol, port) = (route.protocol, message.port);
            let replaced = message.kind == route::RTM_NEWROUTE && protocol != PROTOCOL;
            let who = if replaced { Who::Route { protocol, port } } else { Who::Port(port) };
            self.culprits.note(Thing::Route(route.table, route.dst), who);
        }
        ours || route.dst.prefix_len() == 0
    }

    fn is_rule_event(&mut self, message: &Message<'_>) -> bool {
        if self.own_ports.contains(&message.port) || rule::parse(message).is_none() {
            return false;
        }
        self.culprits.note(Thing::Rules, Who::Port(message.port));
        true
    }

    /// Whether a parameter that a plan may name is not what it was.
    fn is_parameter_event(&mut self, message: &Message<'_>) -> bool {
        let Known { links, sysctls, .. } = &mut self.known;
        let found = parameter::parse(message, |index| links.get(&index).map(|link| link.name.as_str()));
        let mut news = false;
        for (path, value) in found.into_iter().flatten() {
            if let Some(known) = sysctls.get_mut(&path) {
                news |= *known != value;
                *known = value;
            }
        }
        news
    }

    /// Takes note when somebody touched our table, or a FORWARD chain in which we have rules.
    fn firewall_event(&mut self, message: &Message<'_>) {
        if self.own_ports.contains(&message.port) {
            return;
        }
        if let Some((id, name)) = nftables::parse_end(message) {
            let (things, port) = std::mem::take(&mut self.transaction);
            for thing in things.into_iter().filter(|_| port == message.port) {
                self.culprits.note(thing, Who::Process { id, name: name.to_owned() });
            }
            return;
        }
        let Some(event) = nftables::parse_event(message) else { return };
        let ours = event.family == nftables::NFPROTO_INET && event.table == self.interest.table;
        let forward = self.interest.forward
            && event.table == "filter"
            && [nftables::NFPROTO_IPV4, nftables::NFPROTO_IPV6].contains(&event.family)
            && event.chain.is_none_or(|chain| chain == "FORWARD");
        if !ours && !forward {
            return;
        }
        self.pending.insert(HostEvent::Firewall);
        let thing = if ours { Thing::Table } else { Thing::Forward };
        self.culprits.note(thing.clone(), Who::Port(message.port));
        if self.transaction.1 != message.port {
            self.transaction = (BTreeSet::new(), message.port);
        }
        self.transaction.0.insert(thing);
    }
}

/// What became of receiving: the buffer was too small for what came when it is `Lost`.
pub(crate) enum Received {
    Datagram,
    Again,
    Nothing,
    Lost,
    Broken,
}

pub(crate) fn received_as(result: io::Result<()>) -> Received {
    match result {
        Ok(()) => Received::Datagram,
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INTR) => Received::Again,
            Some(Errno::AGAIN) => Received::Nothing,
            Some(Errno::NOBUFS) => Received::Lost,
            _ => Received::Broken,
        },
    }
}
