//! Waiting longer each time that the same thing fails.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// When to try again: after 250 ms, then twice as long each time, up to 30 s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    last: Option<Duration>,
    retry_at: Option<Instant>,
}

impl Backoff {
    /// It failed: how long to wait now.
    pub(crate) fn step(&mut self, now: Instant) -> Duration {
        let wait = self.last.map_or(FIRST, |last| (last * 2).min(LONGEST));
        self.last = Some(wait);
        self.retry_at = Some(now + wait);
        wait
    }

    /// How long the last pause is, if it failed.
    pub(crate) fn pause(&self) -> Option<Duration> {
        self.last
    }

    /// It succeeded.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether it failed and is to be tried again now.
    pub(crate) fn is_due(&self) -> bool {
        self.retry_at.is_some_and(|at| at <= Instant::now())
    }

    /// When to try again, if it failed.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_half_a_minute_and_starts_over() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        let waits: Vec<_> = (0..9).map(|_| backoff.step(now).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        backoff.reset();
        assert!(backoff.retry_at().is_none());
        assert_eq!(backoff.step(now), FIRST);
    }
}
