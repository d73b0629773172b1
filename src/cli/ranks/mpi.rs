//! Ranks over MPI, whichever the cluster has: OpenMPI, MPICH, and what is built on them.
//!
//! Nothing blocks inside the library: a message that is not there yet, or not taken yet, is looked for again after a short
//! sleep. So a waiting rank leaves its cores to others, and hears alarms and signals.

use std::sync::Mutex;
use std::time::Duration;

use mpi::Threading;
use mpi::environment::{Universe, processor_name};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Equivalence, Source};

use crate::error::{Error, Result};
use crate::exec::lock;
use crate::exec::ranks::{Tag, Transport};

/// Bytes of one message of the library, which counts in 31 bits; a longer one of ours is several, the last of them shorter.
const CHUNK: usize = 1 << 30;
/// Bytes of a machine's name.
const NAME: usize = 256;
/// The sleep between two looks.
const SLEEP: Duration = Duration::from_micros(50);

/// This process's place among all.
pub struct Mpi {
    rank: usize,
    size: usize,
    hosts: Vec<String>,
    /// One thread at a time calls the library.
    universe: Mutex<Option<Universe>>,
}

impl Mpi {
    /// Starts the library; every process of the launcher does.
    pub fn start() -> Result<Mpi> {
        let again = || Error::defect("MPI was started before");
        let (universe, threads) = mpi::initialize_with_threading(Threading::Serialized).ok_or_else(again)?;
        if threads < Threading::Serialized {
            return Err(Error::environment("this MPI library can be called by one thread alone")
                .hint("take one that gives MPI_THREAD_SERIALIZED, as OpenMPI and MPICH do"));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let name = processor_name().map_err(|e| Error::environment(format!("MPI: this machine's name: {e}")))?;
        let (mut own, mut all) = ([0u8; NAME], vec![0u8; NAME * size]);
        own.iter_mut().zip(name.bytes()).for_each(|(o, b)| *o = b);
        world.all_gather_into(&own[..], &mut all[..]);
        let host = |name: &[u8]| String::from_utf8_lossy(name).trim_end_matches('\0').to_string();
        let hosts = all.chunks(NAME).map(host).collect();
        Ok(Mpi { rank, size, hosts, universe: Mutex::new(Some(universe)) })
    }

    fn number(tag: Tag) -> i32 {
        match tag {
            Tag::Data => 1,
            Tag::Alarm => 2,
            Tag::Bye => 3,
        }
    }

    fn chunk(world: &SimpleCommunicator, to: usize, tag: Tag, bytes: &[u8]) {
        let process = world.process_at_rank(to as i32);
        mpi::request::scope(|scope| {
            let mut request = process.immediate_send_with_tag(scope, bytes, Self::number(tag));
            while let Err(waiting) = request.test() {
                request = waiting;
                std::thread::sleep(SLEEP);
            }
        });
    }

    /// The next message of the library, where one is there, and whose it is.
    fn next(world: &SimpleCommunicator, from: Option<usize>, tag: Tag) -> Option<(usize, Vec<u8>)> {
        let tag = Self::number(tag);
        let (message, status) = match from {
            Some(rank) => world.process_at_rank(rank as i32).immediate_matched_probe_with_tag(tag),
            None => world.any_process().immediate_matched_probe_with_tag(tag),
        }?;
        let mut bytes = vec![0u8; status.count(u8::equivalent_datatype()) as usize];
        message.matched_receive_into(&mut bytes[..]);
        Some((status.source_rank() as usize, bytes))
    }
}

fn over() -> Error {
    Error::defect("MPI has been left")
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn post(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        let universe = lock(&self.universe);
        let world = universe.as_ref().ok_or_else(over)?.world();
        bytes.chunks(CHUNK).for_each(|chunk| Self::chunk(&world, to, tag, chunk));
        if bytes.len().is_multiple_of(CHUNK) {
            Self::chunk(&world, to, tag, &[]);
        }
        Ok(())
    }

    fn poll(&self, from: Option<usize>, tag: Tag) -> Result<Option<(usize, Vec<u8>)>> {
        let universe = lock(&self.universe);
        let world = universe.as_ref().ok_or_else(over)?.world();
        let Some((from, mut bytes)) = Self::next(&world, from, tag) else { return Ok(None) };
        let mut last = bytes.len();
        while last == CHUNK {
            match Self::next(&world, Some(from), tag) {
                Some((_, more)) => {
                    last = more.len();
                    bytes.extend(more);
                }
                None => std::thread::sleep(SLEEP),
            }
        }
        Ok(Some((from, bytes)))
    }

    fn abort(&self, code: u8) {
        SimpleCommunicator::world().abort(i32::from(code))
    }

    fn leave(&self) {
        drop(lock(&self.universe).take());
    }
}
