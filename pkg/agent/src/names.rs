//! DNS names of endpoints: resolved off the loop, again every half minute, and kept while nobody answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Host;

/// How often a name is looked up.
const PERIOD: Duration = Duration::from_secs(30);
/// How many look-ups are under way at the most.
const AT_ONCE: usize = 32;

/// What one look-up found: the name, and its addresses or nothing.
type Found = (String, Option<Vec<IpAddr>>);

/// The names that are wanted and when each is looked up next.
#[derive(Debug, Default)]
pub(crate) struct Names {
    due: BTreeMap<String, Instant>,
    running: JoinSet<Found>,
    busy: BTreeSet<String>,
}

impl Names {
    /// Sets the names that are wanted: new ones are looked up at once, others forgotten.
    pub(crate) fn want<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
        dns: &mut BTreeMap<String, Vec<IpAddr>>,
    ) {
        let names: BTreeSet<&str> = names.into_iter().collect();
        self.due.retain(|name, _| names.contains(name.as_str()));
        dns.retain(|name, _| names.contains(name.as_str()));
        for name in names {
            if !self.due.contains_key(name) {
                self.due.insert(name.to_owned(), Instant::now());
            }
        }
    }

    /// Waits until some look-ups have answered or others are due, which answers nothing; for ever when no
    /// name is wanted. May be cancelled.
    pub(crate) async fn found(&mut self) -> Vec<Found> {
        let idle = self.due.iter().filter(|(name, _)| !self.busy.contains(*name));
        let next = idle.map(|(_, at)| *at).min();
        let room = self.running.len() < AT_ONCE;
        tokio::select! {
            Some(done) = self.running.join_next() => {
                let mut all = Vec::from_iter(done.ok());
                while let Some(done) = self.running.try_join_next() {
                    all.extend(done.ok());
                }
                for (name, _) in &all {
                    self.busy.remove(name);
                }
                if self.running.is_empty() {
                    // A look-up that died told nothing; its name is free again.
                    self.busy.clear();
                }
                all
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && room => Vec::new(),
            else => std::future::pending().await,
        }
    }

    /// Starts the look-ups that are due.
    pub(crate) fn start<H: Host>(&mut self, host: &H) {
        let now = Instant::now();
        for (name, at) in &mut self.due {
            if self.running.len() >= AT_ONCE {
                break;
            }
            if *at <= now && self.busy.insert(name.clone()) {
                *at = now + PERIOD;
                let lookup = host.resolve(name.clone());
                let name = name.clone();
                self.running.spawn(async move { (name, lookup.await) });
            }
        }
    }

    /// Keeps an answer. An answer that fails leaves the last one that did not. Tells whether a plan may
    /// come out differently.
    pub(crate) fn learn(
        &self,
        dns: &mut BTreeMap<String, Vec<IpAddr>>,
        name: String,
        addresses: Option<Vec<IpAddr>>,
    ) -> bool {
        match addresses {
            Some(addresses) if self.due.contains_key(&name) && dns.get(&name) != Some(&addresses) => {
                dns.insert(name, addresses);
                true
            }
            Some(_) | None => false,
        }
    }
}
