//! Several processes as one: ranks, the messages between them, and how all of them end together.
//!
//! Rank 0 leads: it alone writes and speaks, and says what the others do. A [`Transport`] carries bytes from rank to rank;
//! [`Ranks`] waits on it, hears alarms meanwhile, and measures. Alone, nobody is asked anything. [`together`] makes ranks
//! of threads, so that what holds between processes is tested without any.
//!
//! Who fails raises an [alarm](Ranks::alarm): the others hear it wherever they wait, and between two jobs. Then all
//! [`close`](Ranks::close).

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Cancel, lock};
use crate::error::{Class, Error, Result};

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Work.
    Data,
    /// Something failed: everybody ends.
    Alarm,
    /// The sender will say nothing more.
    Bye,
}

/// Carries messages: between two ranks those of one kind arrive in the order in which they were sent.
pub trait Transport: Send + Sync {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// The machine of each rank: ranks of one machine share its memory.
    fn hosts(&self) -> &[String];

    /// Sends a message, which may wait for `to` to take it.
    fn post(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()>;

    /// The next message of this kind from a rank, or from any, where one is there.
    fn poll(&self, from: Option<usize>, tag: Tag) -> Result<Option<(usize, Vec<u8>)>>;

    /// Ends every rank at once with this exit code, whatever it does; where it cannot, nothing.
    fn abort(&self, _code: u8) {}

    /// The last call, when all have said their last word.
    fn leave(&self) {}
}

/// What messages took since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Seconds until messages were there: other ranks were at work.
    pub waiting: f64,
    /// Seconds in which they were sent and taken.
    pub moving: f64,
    /// Bytes sent and taken.
    pub bytes: u64,
}

struct Crew {
    transport: Box<dyn Transport>,
    spent: Mutex<Spent>,
    heard: Mutex<Option<Heard>>,
}

/// An alarm as it was heard.
#[derive(Clone)]
struct Heard {
    class: Class,
    text: String,
    hint: Option<String>,
}

/// The ranks that work together, seen from one of them; by default this process alone.
#[derive(Clone, Default)]
pub struct Ranks(Option<Arc<Crew>>);

/// The shortest and the longest sleep between two looks for a message.
const SLEEP: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];
/// How long a rank waits for the others' last word before it ends them.
const PATIENCE: Duration = Duration::from_secs(60);

impl Ranks {
    /// Over a transport.
    pub fn over(transport: impl Transport + 'static) -> Self {
        let (transport, spent, heard) = (Box::new(transport), Mutex::default(), Mutex::default());
        Ranks(Some(Arc::new(Crew { transport, spent, heard })))
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |crew| crew.transport.rank())
    }

    /// How many there are, from 1.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |crew| crew.transport.size())
    }

    /// The ranks of this one's machine, itself included, in order.
    pub fn neighbours(&self) -> Vec<usize> {
        let Some(crew) = &self.0 else { return vec![0] };
        let (hosts, own) = (crew.transport.hosts(), crew.transport.rank());
        (0..hosts.len()).filter(|rank| hosts[*rank] == hosts[own]).collect()
    }

    /// Machines that the ranks run on.
    pub fn machines(&self) -> usize {
        let hosts = self.0.as_ref().map_or(&[][..], |crew| crew.transport.hosts());
        hosts.iter().collect::<BTreeSet<_>>().len().max(1)
    }

    fn crew(&self) -> Result<&Crew> {
        self.0.as_deref().ok_or_else(|| Error::defect("ranks: this process is alone"))
    }

    /// Sends bytes to a rank.
    pub fn send(&self, to: usize, bytes: &[u8]) -> Result<()> {
        let (crew, began) = (self.crew()?, Instant::now());
        crew.transport.post(to, Tag::Data, bytes)?;
        crew.count(0.0, began.elapsed().as_secs_f64(), bytes.len());
        Ok(())
    }

    /// Waits for the next bytes of a rank; an alarm or a request to stop ends the wait with its error.
    pub fn receive(&self, from: usize, cancel: &Cancel) -> Result<Vec<u8>> {
        let (crew, began, mut sleep) = (self.crew()?, Instant::now(), SLEEP[0]);
        loop {
            let looked = Instant::now();
            if let Some((_, bytes)) = crew.transport.poll(Some(from), Tag::Data)? {
                let waited = (looked - began).as_secs_f64();
                crew.count(waited, looked.elapsed().as_secs_f64(), bytes.len());
                return Ok(bytes);
            }
            if let Some(e) = self.heard() {
                return Err(e);
            }
            cancel.check()?;
            std::thread::sleep(sleep);
            sleep = (sleep * 2).min(SLEEP[1]);
        }
    }

    /// Rank 0 tells everybody the same: it tells ranks 1, 2, 4, …, and who has heard it tells further ones, so that no rank
    /// sends it more often than log₂ of their number.
    pub fn tell(&self, bytes: &[u8]) -> Result<()> {
        next_told(self.rank(), self.size()).try_for_each(|to| self.send(to, bytes))
    }

    /// What rank 0 tells everybody next; passes it on.
    pub fn told(&self, cancel: &Cancel) -> Result<Vec<u8>> {
        let by = self.rank().checked_ilog2().map_or(0, |bit| self.rank() - (1 << bit));
        let bytes = self.receive(by, cancel)?;
        self.tell(&bytes)?;
        Ok(bytes)
    }

    /// The alarm that another rank has raised, as an error that names it.
    pub fn heard(&self) -> Option<Error> {
        let crew = self.0.as_ref()?;
        let mut heard = lock(&crew.heard);
        if heard.is_none()
            && let Ok(Some((from, bytes))) = crew.transport.poll(None, Tag::Alarm)
        {
            *heard = Some(Heard::read(from, &bytes));
        }
        heard.as_ref().map(Heard::error)
    }

    /// Tells the others that this rank has failed: rank 0 everybody, the others rank 0.
    pub fn alarm(&self, e: &Error) {
        let Some(crew) = &self.0 else { return };
        let (own, size) = (crew.transport.rank(), crew.transport.size());
        let bytes = Heard::of(e, own).bytes();
        let whom = if own == 0 { 1..size } else { 0..1 };
        // Who cannot be reached has ended already.
        whom.for_each(|to| _ = crew.transport.post(to, Tag::Alarm, &bytes));
    }

    /// The last thing that a rank does. Rank 0 tells the others that there is nothing more, or what failed; they give up
    /// what they were about, and all go together. Who does not answer in time is ended. Whether another rank knew of the
    /// failure: then it is said there.
    pub fn close(&self, failed: Option<&Error>) -> bool {
        let Some(crew) = &self.0 else { return false };
        let (own, heard) = (crew.transport.rank(), self.heard());
        let known = heard.is_some();
        match failed.or(heard.as_ref()) {
            // Rank 0 passes on what it heard, so that all end with one exit code.
            Some(e) if own == 0 || !known => self.alarm(e),
            None if own == 0 => (1..crew.transport.size()).for_each(|to| _ = crew.transport.post(to, Tag::Data, &[])),
            _ => {}
        }
        let told = match own {
            0 => crew.drained((1..crew.transport.size()).collect(), Tag::Bye),
            _ => failed.is_none() || known || crew.drained(vec![0], Tag::Alarm),
        };
        if own > 0 {
            _ = crew.transport.post(0, Tag::Bye, &[]);
        }
        match told {
            true => crew.transport.leave(),
            false => crew.transport.abort(failed.map_or(Class::Defect, Error::class).exit_code()),
        }
        own > 0 && told
    }

    /// What messages took since this was last asked.
    pub fn spent(&self) -> Spent {
        self.0.as_ref().map_or_else(Spent::default, |crew| std::mem::take(&mut *lock(&crew.spent)))
    }
}

/// Whom a rank tells, the one with most others to tell first.
fn next_told(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    let first = rank.checked_ilog2().map_or(0, |bit| bit + 1);
    (first..usize::BITS).map(move |bit| rank + (1 << bit)).take_while(move |to| *to < size)
}

impl Crew {
    fn count(&self, waiting: f64, moving: f64, bytes: usize) {
        let mut spent = lock(&self.spent);
        *spent = Spent {
            waiting: spent.waiting + waiting,
            moving: spent.moving + moving,
            bytes: spent.bytes + bytes as u64,
        };
    }

    /// Takes what still comes, so that nobody waits to be heard, until each of these has sent a message of this kind.
    fn drained(&self, mut waited: Vec<usize>, tag: Tag) -> bool {
        let began = Instant::now();
        while !waited.is_empty() && began.elapsed() < PATIENCE {
            match (self.transport.poll(None, tag), self.transport.poll(None, Tag::Data)) {
                (Ok(Some((from, _))), _) => waited.retain(|rank| *rank != from),
                (Ok(None), Ok(Some(_))) => {}
                (Ok(None), Ok(None)) => std::thread::sleep(SLEEP[1]),
                _ => return false,
            }
        }
        waited.is_empty()
    }
}

impl Heard {
    /// What `rank` says of its error; one that it only passes on already names another.
    fn of(e: &Error, rank: usize) -> Self {
        let text = e.plain();
        let text = if text.starts_with("rank ") { text } else { format!("rank {rank}: {text}") };
        Heard { class: e.class(), text, hint: e.advice().map(String::from) }
    }

    fn bytes(&self) -> Vec<u8> {
        serde_json::json!([self.class.exit_code(), self.text, self.hint]).to_string().into_bytes()
    }

    fn read(from: usize, bytes: &[u8]) -> Self {
        let (class, text, hint) = serde_json::from_slice::<(u8, String, Option<String>)>(bytes).unwrap_or_else(|e| {
            (Class::Defect.exit_code(), format!("rank {from}: an alarm that cannot be read: {e}"), None)
        });
        Heard { class: Class::of_exit_code(class), text, hint }
    }

    fn error(&self) -> Error {
        let e = Error::new(self.class, &*self.text);
        match &self.hint {
            Some(hint) => e.hint(hint),
            None => e,
        }
    }
}

/// Mailboxes, one a rank.
type Boxes = Arc<Vec<Mutex<VecDeque<(usize, Tag, Vec<u8>)>>>>;

/// A rank that is a thread.
struct Seat {
    rank: usize,
    boxes: Boxes,
    hosts: Vec<String>,
}

impl Transport for Seat {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.boxes.len()
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn post(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        let none = || Error::defect(format!("ranks: no rank {to} of {}", self.boxes.len()));
        lock(self.boxes.get(to).ok_or_else(none)?).push_back((self.rank, tag, bytes.to_vec()));
        Ok(())
    }

    fn poll(&self, from: Option<usize>, tag: Tag) -> Result<Option<(usize, Vec<u8>)>> {
        let mut own = lock(&self.boxes[self.rank]);
        let fits = |(f, t, _): &(usize, Tag, Vec<u8>)| from.is_none_or(|from| from == *f) && *t == tag;
        let at = own.iter().position(fits);
        Ok(at.and_then(|at| own.remove(at)).map(|(from, _, bytes)| (from, bytes)))
    }
}

/// So many ranks as threads of this process, each to be handed to one.
pub fn together(size: usize) -> Vec<Ranks> {
    let boxes: Boxes = Arc::new((0..size).map(|_| Mutex::default()).collect());
    let hosts = vec!["threads".to_string(); size];
    (0..size).map(|rank| Ranks::over(Seat { rank, boxes: boxes.clone(), hosts: hosts.clone() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_rank_come_in_order_and_are_counted() {
        let ranks = together(3);
        for text in ["a", "bc"] {
            ranks[2].send(0, text.as_bytes()).unwrap();
        }
        ranks[1].send(0, b"d").unwrap();
        let take = |from| ranks[0].receive(from, &Cancel::default()).unwrap();
        assert_eq!([take(1), take(2), take(2)], [b"d".to_vec(), b"a".to_vec(), b"bc".to_vec()]);
        assert_eq!((ranks[0].spent().bytes, ranks[0].spent().bytes), (4, 0));
        assert!(Ranks::default().send(0, b"x").is_err() && Ranks::default().size() == 1);
    }

    #[test]
    fn everybody_is_told_once_and_nobody_tells_many() {
        for size in 1..40 {
            let mut told: Vec<usize> = (0..size).flat_map(|rank| next_told(rank, size)).collect();
            assert!((0..size).all(|rank| next_told(rank, size).count() <= size.ilog2() as usize + 1));
            told.sort_unstable();
            assert_eq!(told, (1..size).collect::<Vec<_>>());
        }
        let ranks = together(6);
        std::thread::scope(|scope| {
            let hear = |rank: usize| {
                let ranks = &ranks;
                scope.spawn(move || ranks[rank].told(&Cancel::default()).unwrap())
            };
            let all: Vec<_> = (1..6).map(hear).collect();
            ranks[0].tell(b"begin").unwrap();
            all.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), b"begin"));
        });
    }

    #[test]
    fn an_alarm_reaches_everybody_who_waits_and_names_its_rank() {
        let ranks = together(3);
        let failed = Error::data("the disk is gone").hint("look at it");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let e = ranks[1].receive(2, &Cancel::default()).unwrap_err();
                (e.to_string(), ranks[1].close(Some(&e)))
            });
            let leader = scope.spawn(|| {
                let e = ranks[0].receive(2, &Cancel::default()).unwrap_err();
                assert!(!ranks[0].close(Some(&e)), "rank 0 says it itself");
                e
            });
            assert!(ranks[2].close(Some(&failed)));
            let e = leader.join().unwrap();
            assert_eq!(e.to_string(), "rank 2: the disk is gone\nhint: look at it");
            assert_eq!(e.class(), Class::Data);
            assert_eq!(waiting.join().unwrap(), (e.to_string(), true));
        });
    }

    #[test]
    fn a_request_to_stop_ends_a_wait() {
        let (ranks, cancel) = (together(2), Cancel::default());
        cancel.stop();
        assert_eq!(ranks[1].receive(0, &cancel).unwrap_err().class(), Class::Stopped);
    }
}
