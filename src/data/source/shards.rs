//! Members of tar shards.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{Names, Place};
use crate::data::census::{Census, Why};
use crate::data::{decode, webdataset};
use crate::error::{Error, Place as _, Result};

pub(super) struct Shards {
    shards: Vec<PathBuf>,
    /// Shard, first byte and bytes of each picture.
    members: Vec<(u32, u64, u64)>,
}

impl Shards {
    /// Reads the headers of all members. A name that comes again is counted; the first stays.
    pub fn read(shards: Vec<PathBuf>, names: &mut Names<'_>, census: &mut Census) -> Result<Shards> {
        let shards = webdataset::in_order(shards);
        let (mut members, mut met) = (Vec::new(), HashSet::new());
        for (n, shard) in shards.iter().enumerate() {
            let place = || format!("shard {}", shard.display());
            webdataset::each_member(shard, |member, _| {
                let called = || webdataset::in_shard(shard, &member.path);
                let ending = member.path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
                if webdataset::is_hidden(&member.path) {
                    census.pass(Why::Hidden, called());
                } else if decode::is_read(&ending) {
                    if met.contains(&member.path) {
                        census.pass(Why::Double, called());
                    } else if names.take(&member.path) {
                        members.push((n as u32, member.offset, member.len));
                        met.insert(member.path);
                    }
                } else if decode::is_foreign(&ending, &[]) {
                    census.pass(Why::Ending, called());
                } else {
                    census.pass(Why::Other, called());
                }
                Ok(())
            })
            .at(place)?;
        }
        Ok(Shards { shards, members })
    }

    fn member(&self, index: usize) -> Result<(u32, u64, u64)> {
        self.members.get(index).copied().ok_or_else(|| Error::defect(format!("no member {index} of the shards")))
    }
}

impl Place for Shards {
    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        let (shard, offset, len) = self.member(index)?;
        webdataset::slice(&self.shards[shard as usize], offset, len)
    }

    fn mark(&self, index: usize) -> Result<u64> {
        Ok(self.member(index)?.2)
    }
}
