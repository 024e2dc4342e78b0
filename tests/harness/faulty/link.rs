//! One process's way to the simulated bucket: an object store whose requests meet the faults.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cairn_common::clock::Clock;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};
use rand::Rng;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::odd;
use super::{Act, Drawn, Event, Fate, Shared, kind_of, refused, silence, unreached};

/// Deletions of one call that are under way at a time, as with the real stores.
const DELETES_AT_ONCE: usize = 10;

/// The way of one process to the bucket.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    stalled_until: Arc<Mutex<Duration>>,
}

/// A write, as it may be done more than once.
#[derive(Clone, Debug)]
enum Write {
    Put(Path, PutPayload, PutOptions),
    Delete(Path),
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, stalled_until: Arc::default() }
    }

    /// For so long nothing that this process asks leaves, and no answer arrives. What is already
    /// at the store is done.
    pub fn stall(&self, length: Duration) {
        let until = self.shared.clock.boot() + length;
        *self.stalled_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Whether this process is stalled.
    pub fn is_stalled(&self) -> bool {
        !self.stalled_for().is_zero()
    }

    fn stalled_for(&self) -> Duration {
        let until = *self.stalled_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.saturating_sub(self.shared.clock.boot())
    }

    /// Returns when this process is not stalled (any more).
    pub async fn let_on(&self) {
        let mut counted = false;
        loop {
            let left = self.stalled_for();
            if left.is_zero() {
                return;
            }
            if !std::mem::replace(&mut counted, true) {
                self.shared.count(Event::Stalled);
            }
            // Timers are good to a millisecond.
            sleep(left.max(Duration::from_millis(1))).await;
        }
    }

    /// A GET; what arrives may be odd.
    async fn get(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.let_on().await;
        let drawn = self.shared.draw(Act::Get, location.as_ref());
        let Drawn { point, .. } = drawn;
        let look = async {
            let odd = match drawn.fate {
                Fate::Odd(odd) if odd.is_of_body() => Some(odd),
                Fate::Odd(_) => return Err(odd::foreign_not_found()),
                _ => None,
            };
            let found = self.shared.objects.get_opts(location, options).await;
            let is_there = matches!(found, Ok(_) | Err(Error::NotModified { .. }));
            if !is_there {
                return found;
            }
            match (self.shared.odd_of_body(location.as_ref(), odd), found) {
                (Some(odd), Ok(found)) => odd::spoilt(odd, found, point).await,
                // A proxy knows nothing of what the client has.
                (Some(odd), Err(_)) => {
                    let found = self.shared.objects.get(location).await?;
                    odd::spoilt(odd, found, point).await
                }
                (None, found) => found,
            }
        };
        self.answer(drawn, look).await
    }

    async fn read<T>(&self, path: &str, look: impl Future<Output = Result<T>>) -> Result<T> {
        self.let_on().await;
        let drawn = self.shared.draw(Act::Step, path);
        self.answer(drawn, look).await
    }

    /// The answer to a read whose fate is drawn.
    async fn answer<T>(&self, drawn: Drawn, look: impl Future<Output = Result<T>>) -> Result<T> {
        let Drawn { there, back, fate, silence: how, .. } = drawn;
        sleep(there).await;
        let answer = match fate {
            Fate::Refused => Err(refused()),
            Fate::Unreached => Err(unreached()),
            Fate::RequestLost | Fate::ResponseLost => silence(how).await,
            _ => look.await,
        };
        sleep(back).await;
        self.let_on().await;
        answer
    }

    async fn write(&self, write: Write) -> Result<Option<PutResult>> {
        self.let_on().await;
        let drawn = self.shared.draw(write.act(), write.path().as_ref());
        let Drawn { there, back, fate, silence: how, .. } = drawn;
        let told = match fate {
            Fate::Refused | Fate::Unreached | Fate::RequestLost => {
                sleep(there).await;
                match fate {
                    Fate::Refused => Err(refused()),
                    Fate::Unreached => Err(unreached()),
                    _ => silence(how).await,
                }
            }
            Fate::Odd(_) => {
                sleep(there).await;
                Err(write.foreign_precondition())
            }
            Fate::Parked(late) => {
                self.launch_late(write, there + late);
                sleep(there).await;
                silence(how).await
            }
            Fate::Done | Fate::ResponseLost | Fate::Duplicated(_) => {
                if let Fate::Duplicated(late) = fate {
                    self.launch_late(write.clone(), there + late);
                }
                let answer = self.launch(write, there).await;
                if fate == Fate::ResponseLost { silence(how).await } else { answer }
            }
        };
        sleep(back).await;
        self.let_on().await;
        told
    }

    /// Sends a write, which lands whether or not the answer is waited for.
    async fn launch(&self, write: Write, there: Duration) -> Result<Option<PutResult>> {
        let (tell, told) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.shared.launch(async move {
            sleep(there).await;
            // The caller may be gone.
            drop(tell.send(write.apply(&shared).await));
        });
        match told.await {
            Ok(answer) => answer,
            // The store is being taken down.
            Err(_) => std::future::pending().await,
        }
    }

    fn launch_late(&self, write: Write, wait: Duration) {
        let shared = Arc::clone(&self.shared);
        self.shared.launch(async move {
            sleep(wait).await;
            let landed = write.apply(&shared).await.is_ok();
            shared.count(if landed { Event::LandedLate } else { Event::LandedInVain });
        });
    }

    /// A listing, or one that was given before for the same prefix.
    async fn look_around(&self, prefix: &Path) -> Result<Vec<ObjectMeta>> {
        let mut found: Vec<_> = self.shared.objects.list(Some(prefix)).try_collect().await?;
        let mut state = self.shared.state();
        state.stamp(&mut found);
        let stale = state.faults.list_stale;
        if state.rng.random_bool(stale)
            && let Some(earlier) = state.listings.get(prefix.as_ref()).cloned()
        {
            state.count(Event::StaleList);
            return Ok(earlier);
        }
        state.listings.insert(prefix.to_string(), found.clone());
        Ok(found)
    }
}

impl Write {
    fn act(&self) -> Act {
        match self {
            Self::Put(..) => Act::Put,
            Self::Delete(_) => Act::Delete,
        }
    }

    fn foreign_precondition(&self) -> Error {
        let mode = match self {
            Self::Put(_, _, options) => &options.mode,
            Self::Delete(_) => &PutMode::Overwrite,
        };
        odd::foreign_precondition(self.path(), mode)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Put(path, ..) | Self::Delete(path) => path,
        }
    }

    async fn apply(&self, shared: &Shared) -> Result<Option<PutResult>> {
        match self {
            Self::Put(path, payload, options) => {
                let put = shared.objects.put_opts(path, payload.clone(), options.clone()).await?;
                shared.state().written_ms.insert(path.clone(), shared.clock.wall_ms());
                Ok(Some(put))
            }
            Self::Delete(path) => {
                if shared.objects.head(path).await.is_ok() {
                    shared.count(Event::Deleted(kind_of(path)));
                }
                shared.objects.delete(path).await.map(|()| None)
            }
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated:/")
    }
}

#[async_trait]
impl ObjectStore for Link {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let put = self.write(Write::Put(location.clone(), payload, options)).await?;
        put.ok_or_else(unreached)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let (link, location) = (self.clone(), location.clone());
        let begin = async { Ok(()) };
        self.read(location.as_ref(), begin).await?;
        Ok(Box::new(LinkUpload { link, location, parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.get(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let link = self.clone();
        let delete = move |location: Result<Path>| {
            let link = link.clone();
            async move {
                let location = location?;
                link.write(Write::Delete(location.clone())).await?;
                Ok(location)
            }
        };
        locations.map(delete).buffered(DELETES_AT_ONCE).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (link, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let found = async move {
            match link.read(prefix.as_ref(), link.look_around(&prefix)).await {
                Ok(found) => found.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            }
        };
        futures::stream::once(found).flat_map(futures::stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let look = self.shared.objects.list_with_delimiter(prefix);
        self.read(prefix.map_or("", |prefix| prefix.as_ref()), look).await
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented {
            operation: "copying".to_owned(),
            implementer: self.to_string(),
        })
    }
}

/// An upload of many parts: they travel one by one, and the object appears with the last request.
#[derive(Debug)]
struct LinkUpload {
    link: Link,
    location: Path,
    parts: Vec<PutPayload>,
}

#[async_trait]
impl MultipartUpload for LinkUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.parts.push(part);
        let (link, location) = (self.link.clone(), self.location.clone());
        Box::pin(async move { link.read(location.as_ref(), async { Ok(()) }).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let whole: PutPayload = self.parts.drain(..).flatten().collect();
        self.link.put_opts(&self.location, whole, PutOptions::default()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}
