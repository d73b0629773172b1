//! What rank 0 tells the others.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::Move;
use super::pack::{Pack, Packed, Packet, Unpack, fields};
use crate::error::{Error, Result};
use crate::exec::lock;
use crate::fl::{ClientId, Collect, Exchange, Named, Who};
use crate::nn::Params;

/// An order.
pub(super) enum Order {
    /// Train your leaves of an exchange.
    Work(Box<Work>),
    /// The round is over.
    Close(Close),
    /// Send what of these clients' things lies here.
    Fetch(Vec<ClientId>),
    /// The rounds are over.
    End,
}

/// An exchange of clients: what the server has, and who is asked.
pub(super) struct Work {
    /// The round.
    pub round: usize,
    /// The exchange's number in it.
    pub number: usize,
    /// The exchange.
    pub exchange: Exchange,
    /// Who is asked, those who will not answer included.
    pub asked: Vec<ClientId>,
    /// Clients that failed earlier in the round.
    pub failed: usize,
    /// The global model.
    pub model: Params,
    /// The algorithm's state.
    pub state: Named,
    /// The way's.
    pub way: Named,
    /// What earlier exchanges of the round brought, packed.
    pub got: Packet,
    /// What clients keep, and where it has to go.
    pub moves: Vec<Move>,
}
fields!(Work: round, number, exchange, asked, failed, model, state, way, got, moves);

/// How a round ended.
#[derive(Debug)]
pub(super) struct Close {
    /// Whether its last exchange came to nothing.
    pub void: bool,
    /// Who failed or was lost: they keep what they kept before.
    pub out: Vec<ClientId>,
}
fields!(Close: void, out);

impl Packed for Order {
    fn put(&self, to: &mut Pack) {
        match self {
            Order::Work(work) => {
                0u8.put(to);
                work.put(to);
            }
            Order::Close(close) => {
                1u8.put(to);
                close.put(to);
            }
            Order::Fetch(clients) => {
                2u8.put(to);
                clients.put(to);
            }
            Order::End => 3u8.put(to),
        }
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        Ok(match u8::take(from)? {
            0 => Order::Work(Box::new(Packed::take(from)?)),
            1 => Order::Close(Packed::take(from)?),
            2 => Order::Fetch(Packed::take(from)?),
            3 => Order::End,
            n => return Err(Error::defect(format!("ranks: no order has the number {n}"))),
        })
    }
}

impl Packed for Exchange {
    fn put(&self, to: &mut Pack) {
        self.name.to_string().put(to);
        (self.who == Who::All).put(to);
        (self.collect == Collect::Each).put(to);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        let name = lasting(String::take(from)?);
        let who = if bool::take(from)? { Who::All } else { Who::Cohort };
        let collect = if bool::take(from)? { Collect::Each } else { Collect::Sum };
        Ok(Exchange { name, who, collect })
    }
}

/// The name of an exchange for as long as the process lives; methods have a handful.
fn lasting(name: String) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = lock(&NAMES);
    match names.get(name.as_str()) {
        Some(known) => known,
        None => {
            let name: &'static str = name.leak();
            names.insert(name);
            name
        }
    }
}
