//! One watch: all there is, then each change, again and again whatever the server does.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kilo_agent::{Event, WatchKind, WatchState};
use kilo_mesh::Finding;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
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

/// What a kind of object becomes.
pub trait Convert<K, T>: Send + Sync {
    /// The object, or what is wrong with it.
    fn convert(&self, object: K) -> Result<T, Finding>;
    /// All of them.
    fn all(&self, objects: Vec<T>, findings: Vec<Finding>) -> Event;
    /// One that is there or has changed.
    fn applied(&self, object: T) -> Event;
    /// One that is gone.
    fn deleted(&self, name: String) -> Event;
}

/// Watches for as long as somebody listens.
pub async fn follow<K, T>(
    api: Api<K>,
    kind: WatchKind,
    convert: &dyn Convert<K, T>,
    events: &mpsc::Sender<Event>,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    T: Send,
{
    let mut watch = Watch { kind, convert, events, streaming: true, down: None };
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

struct Watch<'w, K, T> {
    kind: WatchKind,
    convert: &'w dyn Convert<K, T>,
    events: &'w mpsc::Sender<Event>,
    /// Whether all there is comes as part of the watch.
    streaming: bool,
    /// What was last said about it.
    down: Option<String>,
}

/// Nobody listens any more.
struct Closed;

impl<K, T> Watch<'_, K, T>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
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
        let (mut objects, mut findings) = (Vec::new(), Vec::new());
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
            let told = match event {
                watcher::Event::Init => {
                    objects.clear();
                    findings.clear();
                    *began = false;
                    Ok(())
                }
                watcher::Event::InitApply(object) => {
                    match self.convert.convert(object) {
                        Ok(object) => objects.push(object),
                        Err(finding) => findings.push(finding),
                    }
                    Ok(())
                }
                watcher::Event::InitDone => {
                    *began = true;
                    let all = self.convert.all(std::mem::take(&mut objects), std::mem::take(&mut findings));
                    self.tell(all).await
                }
                watcher::Event::Apply(object) => {
                    let name = object.name_any();
                    let event = match self.convert.convert(object) {
                        Ok(object) => self.convert.applied(object),
                        Err(finding) => Event::Malformed(self.kind, name, finding),
                    };
                    self.tell(event).await
                }
                watcher::Event::Delete(object) => self.tell(self.convert.deleted(object.name_any())).await,
            };
            if told.is_err() {
                return Ok(());
            }
        }
    }

    /// Passes an event on, and that the watch is back.
    async fn tell(&mut self, event: Event) -> Result<(), Closed> {
        if self.down.take().is_some() {
            let up = Event::Watch(self.kind, WatchState::Up);
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
        self.events.send(Event::Watch(self.kind, WatchState::Down(reason))).await.map_err(|_| Closed)
    }
}
