//! The standalone home: a directory of manifests, followed as it changes.
//!
//! What to make of what the files say is decided by [`Manifests`], which reads no file; [`follow`] reads them, on every
//! notice of the file system and, because notices get lost, at least once a second.
//!
//! A change is believed when two readings, one right after the other, agree: a writer who truncates a file and then
//! fills it, or who replaces one by two renames, is not caught in the middle.

mod manifests;
mod read;

pub use manifests::{FileReport, Manifests, Notice, Taken};
pub use read::{MAX_FILE, MAX_FILES, Reading};

use crate::watch::Event;
use notify::{RecursiveMode, Watcher};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// How long after a reading that showed something new the next one follows.
const SETTLE: Duration = Duration::from_millis(60);
/// How long without a notice until the files are read all the same.
const PERIOD: Duration = Duration::from_millis(800);
/// Reading takes no more than this share of the time, however large the directory is: one part of so many.
const DUTY: u32 = 10;

/// Follows `directory` until the future is dropped. `sink` gets what changed and how the files stand, after every
/// reading that settled; the first time also if there is nothing at all.
pub async fn follow(directory: PathBuf, mut sink: impl FnMut(Vec<Event>, &Manifests)) {
    let noticed = Arc::new(Notify::new());
    // Kept alive: dropping the watcher ends the notices.
    let _watcher = notices(&directory, noticed.clone());
    let mut manifests = Manifests::default();
    let mut first = true;
    loop {
        let started = tokio::time::Instant::now();
        let Some(reading) = read_apart(directory.clone()).await else { return };
        let Taken { events, notices, settled } = manifests.take(reading);
        for notice in &notices {
            notice.log();
        }
        if !events.is_empty() || !notices.is_empty() || (first && settled) {
            first = false;
            sink(events, &manifests);
        }
        let rest = started.elapsed() * DUTY;
        if settled {
            tokio::select! {
                () = noticed.notified() => {}
                () = tokio::time::sleep(PERIOD.max(rest)) => {}
            }
        } else {
            tokio::time::sleep(SETTLE.max(rest.min(PERIOD))).await;
        }
    }
}

/// Reads on a thread where waiting for a disk harms nobody. `None` when the runtime is shutting down.
async fn read_apart(directory: PathBuf) -> Option<Reading> {
    tokio::task::spawn_blocking(move || Reading::of(&directory)).await.ok()
}

fn notices(directory: &std::path::Path, noticed: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let told = move |event: notify::Result<notify::Event>| {
        // Our own reading is no news.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            noticed.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(told).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            tracing::warn!(directory = %directory.display(), %error, "changes are not noticed at once, but looked for every second");
        })
        .ok()
}

#[cfg(test)]
mod tests;
