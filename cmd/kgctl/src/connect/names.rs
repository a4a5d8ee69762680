//! Names of endpoints and what they resolve to. The loop never waits for a look-up, and one that fails leaves what
//! was known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tokio::task::JoinSet;

type Answer = (String, Option<Vec<IpAddr>>);

/// The most look-ups at a time; further names wait for the next resync.
const MOST: usize = 64;

/// The names of endpoints.
#[derive(Debug, Default)]
pub struct Names {
    wanted: BTreeSet<String>,
    known: BTreeMap<String, Vec<IpAddr>>,
    asked: BTreeSet<String>,
    lookups: JoinSet<Answer>,
}

impl Names {
    /// What is known.
    pub fn known(&self) -> BTreeMap<String, Vec<IpAddr>> {
        self.known.clone()
    }

    /// These names are wanted from now on; those that are new are looked up.
    pub fn want<F>(&mut self, names: BTreeSet<String>, resolve: impl Fn(String) -> F)
    where
        F: Future<Output = Option<Vec<IpAddr>>> + Send + 'static,
    {
        self.known.retain(|name, _| names.contains(name));
        let new: Vec<String> = names.difference(&self.wanted).cloned().collect();
        self.wanted = names;
        new.into_iter().for_each(|name| self.ask(name, &resolve));
    }

    /// Looks all names up anew.
    pub fn again<F>(&mut self, resolve: impl Fn(String) -> F)
    where
        F: Future<Output = Option<Vec<IpAddr>>> + Send + 'static,
    {
        for name in self.wanted.clone() {
            self.ask(name, &resolve);
        }
    }

    fn ask<F>(&mut self, name: String, resolve: impl Fn(String) -> F)
    where
        F: Future<Output = Option<Vec<IpAddr>>> + Send + 'static,
    {
        if self.lookups.len() < MOST && self.asked.insert(name.clone()) {
            let answer = resolve(name.clone());
            self.lookups.spawn(async move { (name, answer.await) });
        }
    }

    /// Waits until a name resolves to something else than before; may be cancelled.
    pub async fn found(&mut self) {
        loop {
            let Some(answer) = self.lookups.join_next().await else { return std::future::pending().await };
            let Ok((name, addresses)) = answer else { continue };
            self.asked.remove(&name);
            if let Some(addresses) = addresses.filter(|_| self.wanted.contains(&name))
                && self.known.get(&name) != Some(&addresses)
            {
                self.known.insert(name, addresses);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_no_longer_resolves_stays_what_it_was() {
        let mut names = Names::default();
        let one = || BTreeSet::from(["a.test".to_owned()]);
        let address = |last| vec![IpAddr::from([192, 0, 2, last])];
        names.want(one(), |_| async { Some(vec![IpAddr::from([192, 0, 2, 1])]) });
        names.found().await;
        assert_eq!(names.known()["a.test"], address(1));
        names.again(|_| async { None });
        let silent = tokio::time::timeout(std::time::Duration::from_millis(50), names.found()).await;
        assert!(silent.is_err() && names.known()["a.test"] == address(1));
        names.again(|_| async { Some(vec![IpAddr::from([192, 0, 2, 2])]) });
        names.found().await;
        assert_eq!(names.known()["a.test"], address(2));
        names.want(BTreeSet::new(), |_| async { None });
        assert!(names.known().is_empty());
    }
}
