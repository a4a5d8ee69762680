//! Which nodes are there: by their check-ins, and by whether we could have heard of them. Time is an argument, in
//! seconds since 1970.
//!
//! A node whose last check-in is too old goes only once the watch has told something after that moment. When the
//! watch was silent for long, all who were there before the silence stay until they had the time to check in
//! again, whoever comes back first.

use std::collections::{BTreeMap, BTreeSet};

use kilo_mesh::Node;

use crate::CHECK_IN;

/// A watch that works tells our own check-in at least, every half minute. After a longer silence nobody can tell
/// the dead from the unheard.
const SILENCE: u64 = CHECK_IN.as_secs() + 2;

/// What is known about one node.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// It counted as being there when it was last judged.
    counted: bool,
    /// Until when it need not check in.
    excused: u64,
    /// When it is judged again although nothing was heard of it.
    at: Option<u64>,
}

/// Who is there.
#[derive(Debug)]
pub(crate) struct Presence {
    /// `--node-expiry`; 0 for never.
    expiry: u64,
    /// When the watch of Nodes last told something; 0 for never.
    heard: u64,
    states: BTreeMap<String, State>,
    due: BTreeSet<(u64, String)>,
    /// Those who go as soon as something is heard.
    unheard: BTreeSet<String>,
}

impl Presence {
    pub(crate) fn new(expiry: u64) -> Self {
        Self { expiry, heard: 0, states: BTreeMap::new(), due: BTreeSet::new(), unheard: BTreeSet::new() }
    }

    /// Notes that the watch has told something. After a silence all who were there are excused.
    pub(crate) fn hear<'a>(&mut self, nodes: impl Iterator<Item = &'a Node>, now: u64) {
        let silence = now.saturating_sub(self.heard);
        if self.heard != 0 && silence > SILENCE && self.expiry != 0 {
            let excused = now.saturating_add(self.grace());
            for node in nodes {
                let Some(state) = self.states.get_mut(&*node.name) else { continue };
                // Short silences must not keep a dead node for ever.
                let outage = silence >= self.expiry;
                if state.counted && (outage || node.ready_by_clock(self.heard, self.expiry)) {
                    state.excused = excused;
                }
            }
        }
        self.heard = now;
    }

    /// How long a node may take to check in again: as long as ever, and one more time.
    fn grace(&self) -> u64 {
        self.expiry.saturating_add(CHECK_IN.as_secs())
    }

    /// Begins with the first list. When our own last check-in is long ago, and most who were there at that time
    /// have not checked in since either, it was the cluster that could not be reached: they are excused.
    pub(crate) fn begin<'a>(
        &mut self,
        own: Option<&Node>,
        others: impl Iterator<Item = &'a Node> + Clone,
        now: u64,
    ) {
        let Some(own) = own.map(|own| own.last_seen).filter(|seen| *seen > 0) else { return };
        let away = now.saturating_sub(own.unsigned_abs());
        if self.expiry == 0 || away < self.expiry {
            return;
        }
        let then = own.saturating_sub_unsigned(self.expiry);
        let with_us = others.filter(|node| node.is_complete() && node.last_seen > then);
        let (back, silent): (Vec<&Node>, Vec<&Node>) =
            with_us.partition(|node| node.ready_by_clock(now, self.expiry));
        if silent.len() > back.len() {
            let excused = now.saturating_add(self.grace());
            for node in silent {
                let state = State { counted: true, excused, at: None };
                self.states.insert(node.name.to_string(), state);
            }
        }
    }

    /// Judges a node, which is marked if only the silence keeps it. Tells whether it counts now.
    pub(crate) fn judge(&mut self, node: &mut Node, now: u64) -> bool {
        let name = node.name.to_string();
        let state = self.states.entry(name.clone()).or_default();
        if let Some(at) = state.at.take() {
            self.due.remove(&(at, name.clone()));
        }
        let alive = node.ready_by_clock(now, self.expiry);
        let kept = state.counted
            && node.is_complete()
            && (state.excused > self.heard || node.ready_by_clock(self.heard, self.expiry));
        node.held = kept && !alive;
        state.counted = alive || kept;
        if alive && self.expiry != 0 {
            let expires = node.last_seen.saturating_add_unsigned(self.expiry).max(0).unsigned_abs();
            // Check-ins of the farthest past count as of the future.
            state.at = Some(if expires > now { expires } else { now.saturating_add(self.expiry) });
        } else if node.held && state.excused > now {
            state.at = Some(state.excused);
        }
        if let Some(at) = state.at {
            self.due.insert((at, name.clone()));
        }
        if node.held && state.at.is_none() {
            self.unheard.insert(name);
        } else {
            self.unheard.remove(&name);
        }
        state.counted
    }

    /// Whether a node counted when it was last judged.
    pub(crate) fn counts(&self, name: &str) -> bool {
        self.states.get(name).is_some_and(|state| state.counted)
    }

    /// Forgets a node.
    pub(crate) fn forget(&mut self, name: &str) {
        if let Some(at) = self.states.remove(name).and_then(|state| state.at) {
            self.due.remove(&(at, name.to_owned()));
        }
        self.unheard.remove(name);
    }

    /// Those who are to be judged again by now.
    pub(crate) fn due(&self, now: u64) -> Vec<String> {
        self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, name)| name.clone()).collect()
    }

    /// When the first is to be judged again.
    pub(crate) fn next(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Those who go as soon as something is heard, unless that is of them.
    pub(crate) fn unheard(&self) -> Vec<String> {
        self.unheard.iter().cloned().collect()
    }

    /// Whether there are any.
    pub(crate) fn waits(&self) -> bool {
        !self.unheard.is_empty()
    }
}
