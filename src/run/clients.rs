//! What clients keep, by client: `clients/000017/round-000118.safetensors`, written at the checkpoint that follows a
//! change, and named with its digest by every checkpoint that still needs it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::state;
use crate::error::{Error, Result};
use crate::fsx;
use crate::nn::Named;

/// One client's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The round that changed what the client keeps.
    pub round: usize,
    /// SHA-256 of the file.
    pub digest: String,
}

/// Which files a checkpoint needs, by client.
pub type Index = BTreeMap<u32, Entry>;

/// The `clients` folder of a run.
pub struct Clients {
    folder: PathBuf,
}

impl Clients {
    /// Below a run's directory.
    pub fn new(run: &Path) -> Self {
        Clients { folder: run.join("clients") }
    }

    fn file(&self, client: u32, round: usize) -> PathBuf {
        self.folder.join(format!("{client:06}/round-{round:06}.safetensors"))
    }

    /// Writes what a client keeps since `round`.
    pub fn write(&self, client: u32, round: usize, named: &Named) -> Result<Entry> {
        let bytes = state::to_bytes(named)?;
        fsx::write_atomic(&self.file(client, round), &bytes)?;
        Ok(Entry { round, digest: fsx::sha256(&bytes) })
    }

    /// Refuses an index whose files are not those that it names.
    pub fn prove(&self, index: &Index) -> Result<()> {
        index.iter().try_for_each(|(&client, entry)| {
            let file = self.file(client, entry.round);
            match fsx::sha256_file(&file)? == entry.digest {
                true => Ok(()),
                false => {
                    Err(Error::data(format!("{} does not have the digest that its checkpoint gives", file.display())))
                }
            }
        })
    }

    /// Reads it back; a file with another digest is refused.
    pub fn read(&self, client: u32, entry: &Entry) -> Result<Named> {
        let path = self.file(client, entry.round);
        if fsx::sha256_file(&path)? != entry.digest {
            return Err(Error::data(format!("{} does not have the digest that its checkpoint gives", path.display()))
                .hint("delete the newest folder in checkpoints to go on from the one before it"));
        }
        state::load(&path)
    }

    /// Removes the files that only `gone` needed.
    pub fn forget(&self, gone: &Index, needed: &[&Index]) -> Result<()> {
        let held = |client: u32, round: usize| needed.iter().any(|i| i.get(&client).is_some_and(|e| e.round == round));
        for (&client, entry) in gone.iter().filter(|(client, e)| !held(**client, e.round)) {
            let path = self.file(client, entry.round);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Params;

    #[test]
    fn files_go_when_no_checkpoint_needs_them_and_a_changed_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let clients = Clients::new(dir.path());
        let named = |v: f32| Named::from([("head".to_string(), Params::tensor("head", &[1], vec![v]).unwrap())]);
        let (old, new) = (clients.write(3, 10, &named(1.0)).unwrap(), clients.write(3, 20, &named(2.0)).unwrap());
        let (gone, needed) = (Index::from([(3, old.clone())]), Index::from([(3, new.clone())]));
        clients.forget(&gone, &[&gone]).unwrap();
        assert_eq!(clients.read(3, &old).unwrap()["head"].data(), &[1.0]);
        clients.forget(&gone, &[&needed]).unwrap();
        assert!(clients.read(3, &old).is_err());
        std::fs::write(clients.file(3, 20), b"junk").unwrap();
        assert!(clients.read(3, &new).unwrap_err().to_string().contains("digest"));
    }
}
