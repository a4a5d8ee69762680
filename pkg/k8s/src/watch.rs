//! One watch: all there is, then each change, again and again whatever the server does.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kilo_agent::WatchState;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::error::CallError;

/// How long the beginning of a watch may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the server is asked to keep a watch, in seconds; one that stays silent longer is begun anew.
const WATCH_SECONDS: u32 = 240;

/// The first pause after an error; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the objects of a kind become. Whatever is to be told now goes to the end of `out`.
pub trait Convert<K>: Send {
    /// What is told.
    type Event: Send;
    /// A list begins; what came of one that broke does not count.
    fn restarted(&mut self);
    /// An object of the list.
    fn listed(&mut self, object: K, out: &mut Vec<Self::Event>);
    /// The list is complete.
    fn synced(&mut self, out: &mut Vec<Self::Event>);
    /// An object that is there or has changed.
    fn applied(&mut self, object: K, out: &mut Vec<Self::Event>);
    /// An object that is gone.
    fn deleted(&mut self, object: &K, out: &mut Vec<Self::Event>);
    /// How the watch is doing.
    fn state(&self, state: WatchState) -> Self::Event;
}

/// Watches for as long as somebody listens.
pub async fn follow<K, C>(api: Api<K>, convert: C, events: &mpsc::Sender<C::Event>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    C: Convert<K>,
{
    let mut watch = Watch { convert, events, streaming: true, down: None, kind: PhantomData };
    let mut pause = FIRST_PAUSE;
    loop {
        let mut began = false;
        let Err(error) = watch.once(api.clone(), &mut began).await else { return };
        if began {
            pause = FIRST_PAUSE;
        } else {
            // Servers before 1.34 may know only one of the two ways to begin.
            watch.streaming = !watch.streaming;
        }
        if watch.report(&error).await.is_err() {
            return;
        }
        tokio::select! {
            () = events.closed() => return,
            () = tokio::time::sleep(jitter(pause)) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Between three quarters and all of it, so that agents do not come back at the same moment.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 256;
    pause.mul_f64(0.75 + random as f64 / 1024.0)
}

struct Watch<'w, K, C: Convert<K>> {
    convert: C,
    events: &'w mpsc::Sender<C::Event>,
    /// Whether all there is comes as part of the watch.
    streaming: bool,
    /// What was last said about it.
    down: Option<String>,
    kind: PhantomData<fn(K)>,
}

/// Nobody listens any more.
struct Closed;

impl<K, C> Watch<'_, K, C>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    C: Convert<K>,
{
    /// Watches until something breaks; `Ok` when nobody listens any more.
    async fn once(&mut self, api: Api<K>, began: &mut bool) -> Result<(), CallError> {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(500);
        let config = if self.streaming {
            watcher::Config { page_size: None, ..config }.streaming_lists()
        } else {
            config
        };
        let events = self.events;
        let mut stream = pin!(watcher(api, config));
        let mut out = Vec::new();
        loop {
            let next = async {
                if *began {
                    return Ok(stream.next().await);
                }
                tokio::time::timeout(SILENCE, stream.next()).await.map_err(|_| CallError::Silent(SILENCE))
            };
            let event = tokio::select! {
                () = events.closed() => return Ok(()),
                event = next => event?,
            };
            let Some(event) = event.transpose()? else { return Err(CallError::Silent(Duration::ZERO)) };
            match event {
                watcher::Event::Init => {
                    self.convert.restarted();
                    *began = false;
                }
                watcher::Event::InitApply(object) => self.convert.listed(object, &mut out),
                watcher::Event::InitDone => {
                    *began = true;
                    self.convert.synced(&mut out);
                }
                watcher::Event::Apply(object) => self.convert.applied(object, &mut out),
                watcher::Event::Delete(object) => self.convert.deleted(&object, &mut out),
            }
            for event in out.drain(..) {
                if self.tell(event).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// Passes an event on, and that the watch is back.
    async fn tell(&mut self, event: C::Event) -> Result<(), Closed> {
        if self.down.take().is_some() {
            let up = self.convert.state(WatchState::Up);
            self.events.send(up).await.map_err(|_| Closed)?;
        }
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Says that the watch broke, once for each reason.
    async fn report(&mut self, error: &CallError) -> Result<(), Closed> {
        let reason = error.line();
        if self.down.as_ref() == Some(&reason) {
            return Ok(());
        }
        self.down = Some(reason.clone());
        self.events.send(self.convert.state(WatchState::Down(reason))).await.map_err(|_| Closed)
    }
}
