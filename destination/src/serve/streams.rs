//! How a stream is kept up to date, and how it ends: the one loop behind every watch of every API.

use super::Serving;
use crate::{
    metrics::{Api, Metrics},
    publish::{Store, Watch},
    view::Lens,
};
use remora_runtime::{
    metrics::{Counter, GaugeGuard},
    tasks::{Drain, Tasks},
};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

/// What a client reads.
pub(super) type Updates<T> = ReceiverStream<Result<T, Status>>;

/// The streams of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    store: Arc<Store>,
    metrics: Metrics,
    tasks: Tasks,
    drain: Drain,
    permits: Arc<Semaphore>,
    limit: usize,
    queue: usize,
}

impl Streams {
    pub(super) fn new(serving: &Serving) -> Self {
        Self {
            store: serving.store.clone(),
            metrics: serving.metrics.clone(),
            tasks: serving.tasks.clone(),
            drain: serving.drain.clone(),
            permits: Arc::new(Semaphore::new(serving.limits.streams)),
            limit: serving.limits.streams,
            queue: serving.limits.queue.max(1),
        }
    }

    /// One answer, now.
    pub(super) fn once<T>(
        &self,
        api: Api,
        view: impl FnOnce(&mut Lens<'_>) -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let answer = self.store.read(|index| view(&mut Lens::new(index)));
        answer.map(Response::new).inspect_err(|status| self.metrics.refused(api, status.code()))
    }

    /// Counts a request that was refused before it was looked at.
    pub(super) fn refused(&self, api: Api, status: Status) -> Status {
        self.metrics.refused(api, status.code());
        status
    }

    /// An answer that is kept up to date. `view` says what to send next: at first everything, later what is new. An
    /// error of the first look is the answer to the request, a later one ends the stream.
    pub(super) fn open<T: Send + 'static>(
        &self,
        api: Api,
        mut view: impl FnMut(&mut Lens<'_>) -> Result<Vec<T>, Status> + Send + 'static,
    ) -> Result<Response<Updates<T>>, Status> {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            let reason = format!("this control plane serves no more than {} streams at once", self.limit);
            return Err(self.refused(api, Status::resource_exhausted(reason)));
        };
        let mut watch = self.store.watch();
        let first = watch.look(&mut view).map_err(|status| self.refused(api, status))?;
        // One more than the limit: for the error that says that the limit was reached.
        let (updates, reader) = mpsc::channel(self.queue + 1);
        let stream = Stream {
            watch,
            updates,
            drain: self.drain.clone(),
            metrics: self.metrics.clone(),
            sent: self.metrics.updates(api),
            api,
            _open: self.metrics.streams(api).guard(),
            _permit: permit,
        };
        self.tasks.spawn(api.as_str(), stream.keep_up(first, view));
        Ok(Response::new(ReceiverStream::new(reader)))
    }
}

struct Stream<T> {
    watch: Watch,
    updates: mpsc::Sender<Result<T, Status>>,
    drain: Drain,
    metrics: Metrics,
    sent: Counter,
    api: Api,
    _open: GaugeGuard,
    _permit: OwnedSemaphorePermit,
}

impl<T: Send + 'static> Stream<T> {
    async fn keep_up(mut self, first: Vec<T>, mut view: impl FnMut(&mut Lens<'_>) -> Result<Vec<T>, Status>) {
        let mut news = Ok(first);
        loop {
            match news {
                Ok(updates) => {
                    for update in updates {
                        if !self.send(update) {
                            return;
                        }
                    }
                }
                Err(status) => return self.end(status),
            }
            tokio::select! {
                () = self.watch.changed() => {}
                () = self.updates.closed() => return,
                // The stream ends without an error; the proxy keeps what it has and asks another replica.
                () = self.drain.draining() => return,
            }
            news = self.watch.look(&mut view);
        }
    }

    /// Queues an update. False if the stream is at its end.
    fn send(&self, update: T) -> bool {
        if self.updates.capacity() <= 1 {
            self.metrics.overflows(self.api).inc();
            let limit = self.updates.max_capacity() - 1;
            self.end(Status::aborted(format!(
                "{limit} updates were not read; ask again for the whole state"
            )));
            return false;
        }
        let sent = self.updates.try_send(Ok(update)).is_ok();
        if sent {
            self.sent.inc();
        }
        sent
    }

    fn end(&self, status: Status) {
        self.metrics.refused(self.api, status.code());
        // A client that is gone needs no reason.
        let _ = self.updates.try_send(Err(status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resources::{Document, parse},
        serve::Limits,
        view::{Workload, inbound, settings_for_tests},
        watch::Event,
    };
    use remora_runtime::{
        control::Terminate,
        metrics::{RETAIN_IDLE, Registry},
    };
    use tokio_stream::StreamExt as _;

    #[tokio::test]
    async fn a_reader_who_falls_behind_is_told_and_dropped() {
        let serving = serving(Limits { queue: 2, ..Limits::default() });
        let mut updates = open(&serving).unwrap().into_inner();
        let sent = serving.metrics.updates(Api::Inbound);
        // Each change is sent before the next one comes: otherwise the latest would stand for all.
        for policy in ["audit", "deny"] {
            let before = sent.get();
            apply(&serving, policy);
            while sent.get() == before && serving.metrics.overflows(Api::Inbound).get() == 0 {
                tokio::task::yield_now().await;
            }
        }
        let mut read = Vec::new();
        while let Some(update) = updates.next().await {
            read.push(update.map_err(|status| status.code()));
        }
        assert_eq!(read.len(), 3, "{read:?}");
        assert_eq!(read.last(), Some(&Err(tonic::Code::Aborted)));
        assert_eq!(serving.metrics.overflows(Api::Inbound).get(), 1);
        while serving.store.watched() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn between_two_looks_the_latest_value_wins() {
        let serving = serving(Limits::default());
        let mut updates = open(&serving).unwrap().into_inner();
        assert!(updates.next().await.unwrap().unwrap().contains("AllUnauthenticated"));
        for policy in ["audit", "deny", "cluster-authenticated"] {
            apply(&serving, policy);
        }
        assert!(updates.next().await.unwrap().unwrap().contains("ClusterAuthenticated"));
    }

    #[tokio::test]
    async fn streams_are_bounded_and_given_back() {
        let serving = serving(Limits { streams: 1, ..Limits::default() });
        let streams = Streams::new(&serving);
        let first = open_in(&streams).unwrap();
        assert_eq!(open_in(&streams).err().unwrap().code(), tonic::Code::ResourceExhausted);
        drop(first);
        while streams.permits.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(open_in(&streams).is_ok());
    }

    fn serving(limits: Limits) -> Serving {
        Serving {
            store: Arc::default(),
            settings: Arc::new(settings_for_tests()),
            terminate: Terminate::Plaintext,
            limits,
            metrics: Metrics::new(&Registry::new(RETAIN_IDLE)),
            tasks: Tasks::new(),
            drain: Drain::new(),
        }
    }

    fn open(serving: &Serving) -> Result<Response<Updates<String>>, Status> {
        apply(serving, "all-unauthenticated");
        open_in(&Streams::new(serving))
    }

    /// A stream of the policy of a pod, in words.
    fn open_in(streams: &Streams) -> Result<Response<Updates<String>>, Status> {
        let (settings, workload) = (settings_for_tests(), Workload::parse("shop:web").unwrap());
        streams.open(Api::Inbound, move |lens| {
            Ok(vec![format!("{:?}", inbound(lens, &settings, &workload, 80))])
        })
    }

    fn apply(serving: &Serving, policy: &str) {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: shop, annotations: {{config.linkerd.io/default-inbound-policy: {policy}}}}}, spec: {{containers: []}}}}"
        );
        match parse(&text).unwrap().remove(0) {
            Document::Known(resource) => serving.store.apply(vec![Event::Apply(resource)]),
            Document::Unread(what) => panic!("{what} is not read"),
        };
    }
}
