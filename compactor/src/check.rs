//! Reading an SST from end to end, to find out whether it is damaged.

use std::time::Duration;

use cairn_common::error::{Error, Result};
use cairn_common::format::manifest::SstInfo;
use cairn_common::format::path::Object;
use tokio::sync::mpsc;

use crate::job::Tools;
use crate::job::input::{Fetcher, Stretch};

/// Looks that must agree before an SST counts as damaged. Each is a read of its own, so that one
/// odd answer on the way is not taken for damage.
const LOOKS: u32 = 2;
/// Between two looks: what made an answer odd (a proxy, a link) has had time to pass.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// Reads all of an SST and verifies its metadata and every block; one that is sound leaves the
/// damage registry. Memory: three stretches.
///
/// # Errors
/// `Corrupt`, `NotFound`: every look found it so. `Unavailable`, `Indeterminate`.
pub async fn check(tools: &Tools, sst: &SstInfo) -> Result<()> {
    let mut look = 1;
    loop {
        match read(tools, sst).await {
            Err(Error::Corrupt(_) | Error::NotFound(_)) if look < LOOKS => look += 1,
            settled => {
                if settled.is_ok() {
                    tools.bucket.damage().clear(&Object::Sst(sst.id));
                }
                return settled;
            }
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn read(tools: &Tools, sst: &SstInfo) -> Result<()> {
    let fetcher = Fetcher {
        bucket: tools.bucket.clone(),
        database: tools.making.database,
        stretch_bytes: tools.read_ahead_bytes / 2,
    };
    let (sender, mut stretches) = mpsc::channel::<Result<Stretch>>(1);
    // The receiver goes with it: a fetcher whose receiver is gone ends.
    let verifying = async move {
        while let Some(stretch) = stretches.recv().await.transpose()? {
            let verify = move || stretch.verify();
            let verified = tools.env.cpu.run(verify).await;
            verified.map_err(|cause| Error::corrupt(Object::Sst(sst.id).path(), cause))?;
        }
        Ok(())
    };
    let (verified, ()) = tokio::join!(verifying, fetcher.fetch(vec![sst.clone()], sender));
    verified
}
