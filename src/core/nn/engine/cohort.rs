//! Clients side by side, plainly: one workspace each. The reference that an interpreter with a real client axis is
//! checked against; the loops themselves give every core a client of its own.

use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::interpreter::{Interpreter, Mode};
use crate::nn::net::{Net, Node};

/// `K` clients on one network: parameters `[K, P]`, samples of client 0, then of client 1, and so on.
///
/// `rows[k]` samples belong to client `k`; with `rows[k] = 0` its parameters and buffers stay as they are and its
/// gradients are 0.
/// Client `k` draws dropout masks from `keys[k]`, counting its own rows: it gets what it gets alone.
pub struct Cohort<I> {
    net: Net,
    clients: Vec<I>,
    rows: Vec<usize>,
}

impl<I: Interpreter> Cohort<I> {
    /// Clients on workspaces that run one client each.
    pub fn new(net: &Net, clients: Vec<I>) -> Self {
        let rows = vec![0; clients.len()];
        Cohort { net: net.clone(), clients, rows }
    }

    /// Refuses anything but `K` times the parameters.
    fn check(&self, what: &str, len: usize) -> Result<()> {
        let want = self.clients.len() * self.net.layout.len();
        if len == want {
            return Ok(());
        }
        let (k, p) = (self.clients.len(), self.net.layout.len());
        Err(Error::defect(format!("{}: {len} {what} for {k} clients of {p} each, expected {want}", self.net.name)))
    }

    /// Refuses values of a node that are not one sample's for each row.
    fn check_rows(&self, what: &str, node: Node, len: usize) -> Result<()> {
        let (sample, rows) = (self.sample(node), self.rows.iter().sum::<usize>());
        if len == rows * sample {
            return Ok(());
        }
        Err(Error::defect(format!(
            "{}: {what} of node {node}: {len} values, expected {rows} × {sample}",
            self.net.name
        )))
    }

    fn sample(&self, node: Node) -> usize {
        self.net.shapes[node].iter().product()
    }

    /// Clients that have rows: their number, first row and workspace.
    fn present(&mut self) -> impl Iterator<Item = (usize, usize, &mut I)> {
        let first = self.rows.iter().scan(0, |sum, rows| Some(std::mem::replace(sum, *sum + rows)));
        let all = self.clients.iter_mut().enumerate().zip(first).zip(&self.rows);
        all.filter(|(_, rows)| **rows > 0).map(|(((k, client), first), _)| (k, first, client))
    }
}

impl<I: Interpreter> Interpreter for Cohort<I> {
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        if rows.len() != self.clients.len() {
            let (net, k) = (&self.net.name, self.clients.len());
            return Err(Error::defect(format!("{net}: rows of {} clients, the cohort has {k}", rows.len())));
        }
        mode.check(rows.len())?;
        self.check("parameters", params.len())?;
        self.rows = rows.to_vec();
        self.check_rows("images", 0, x.len())?;
        let (p, sample) = (self.net.layout.len(), self.sample(0));
        for (k, first, client) in self.present() {
            let own = mode.of(k)?;
            client.forward(
                &params[k * p..][..p],
                &x[first * sample..][..rows[k] * sample],
                &rows[k..=k],
                own.alone(),
            )?;
        }
        Ok(())
    }

    fn update_buffers(&mut self, params: &mut [f32]) -> Result<()> {
        self.check("parameters", params.len())?;
        let p = self.net.layout.len();
        self.present().try_for_each(|(k, _, client)| client.update_buffers(&mut params[k * p..][..p]))
    }

    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let mut one = Vec::new();
        for (_, _, client) in self.present() {
            client.read(node, &mut one)?;
            out.extend_from_slice(&one);
        }
        Ok(())
    }

    fn backward(&mut self, params: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()> {
        self.check("parameters", params.len())?;
        self.check("gradients", grads.len())?;
        for &(node, seed) in seeds {
            self.check_rows("the seed", node, seed.len())?;
        }
        let (p, rows) = (self.net.layout.len(), self.rows.clone());
        let samples: Vec<usize> = seeds.iter().map(|s| self.sample(s.0)).collect();
        for (k, _) in rows.iter().enumerate().filter(|(_, rows)| **rows == 0) {
            grads[k * p..][..p].fill(0.0);
        }
        for (k, first, client) in self.present() {
            let mut own: Vec<(Node, &[f32])> = Vec::new();
            for (&(node, seed), sample) in seeds.iter().zip(&samples) {
                own.push((node, &seed[first * sample..][..rows[k] * sample]));
            }
            client.backward(&params[k * p..][..p], &own, &mut grads[k * p..][..p])?;
        }
        Ok(())
    }
}
