//! Pings of an HTTP/2 connection: whether the other end is still there, and how much can be under way to it.

use super::portions::Portion;
use h2::{Ping, PingPong};
use remora_core::{bandwidth::Bandwidth, time::Time};
use remora_runtime::clock;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// When an end that says nothing is asked, and how long its answer may take.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    pub interval: Duration,
    pub timeout: Duration,
}

/// What a ping has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The other end does not answer.
    Gone,
    /// So many bytes may be under way from now on.
    Window(u32),
}

/// The pings of one connection.
pub struct Pings {
    ping_pong: PingPong,
    /// Counts what was read of the connection.
    portion: Portion,
    keep_alive: Option<(KeepAlive, Pin<Box<Sleep>>)>,
    bandwidth: Option<Bandwidth>,
    /// Bytes read when it was last looked, and when that was.
    read: u64,
    heard: Time,
    /// The ping under way: since when, and what had been read.
    asked: Option<(Time, u64)>,
    /// The next measurement is not before.
    measure: Time,
}

impl Pings {
    /// `None` if there is nothing to ask. `portion` is that of the connection's stream.
    pub fn new(
        ping_pong: Option<PingPong>,
        portion: &Portion,
        keep_alive: Option<KeepAlive>,
        bandwidth: Option<Bandwidth>,
    ) -> Option<Self> {
        if keep_alive.is_none() && bandwidth.is_none() {
            return None;
        }
        let now = clock::now();
        let keep_alive =
            keep_alive.map(|keep_alive| (keep_alive, Box::pin(tokio::time::sleep(keep_alive.interval))));
        let (portion, read) = (portion.clone(), portion.read());
        Some(Self {
            ping_pong: ping_pong?,
            portion,
            keep_alive,
            bandwidth,
            read,
            heard: now,
            asked: None,
            measure: now,
        })
    }

    /// To be called whenever the connection is polled.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Option<Told> {
        let read = self.portion.read();
        let came = read != self.read;
        if came {
            self.read = read;
            self.heard = clock::now();
        }
        if let Some((since, before)) = self.asked {
            if self.ping_pong.poll_pong(cx).is_ready() {
                self.asked = None;
                let now = clock::now();
                self.heard = now;
                self.wait(|keep_alive| keep_alive.interval);
                if let Some(bandwidth) = &mut self.bandwidth {
                    let wider = bandwidth.measured(read - before, now.since(since));
                    self.measure = now + bandwidth.pause();
                    if let Some(wider) = wider {
                        return Some(Told::Window(wider));
                    }
                }
            }
        } else if came && self.bandwidth.is_some() && self.measure <= self.heard {
            self.ask();
        }
        self.keep_alive(cx)
    }

    fn keep_alive(&mut self, cx: &mut Context<'_>) -> Option<Told> {
        loop {
            let (keep_alive, timer) = self.keep_alive.as_mut()?;
            let limit = *keep_alive;
            if timer.as_mut().poll(cx) == Poll::Pending {
                return None;
            }
            let now = clock::now();
            let quiet = now.since(self.heard);
            match self.asked {
                Some((since, _)) if now.since(since) >= limit.timeout => {
                    self.keep_alive = None;
                    return Some(Told::Gone);
                }
                Some((since, _)) => {
                    self.wait(|keep_alive| keep_alive.timeout.saturating_sub(now.since(since)));
                }
                None if quiet < limit.interval => {
                    self.wait(|keep_alive| keep_alive.interval.saturating_sub(quiet));
                }
                None => self.ask(),
            }
        }
    }

    fn ask(&mut self) {
        // It fails where one is under way already, or the connection has ended, as its next poll will say.
        if self.ping_pong.send_ping(Ping::opaque()).is_ok() {
            self.asked = Some((clock::now(), self.read));
        }
        self.wait(|keep_alive| keep_alive.timeout);
    }

    fn wait(&mut self, time: impl FnOnce(&KeepAlive) -> Duration) {
        if let Some((keep_alive, timer)) = &mut self.keep_alive {
            // Not less than the timer's own step: it is asked again at once.
            let time = time(keep_alive).max(Duration::from_millis(1));
            timer.as_mut().reset(Instant::now() + time);
        }
    }
}
