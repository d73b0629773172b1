//! `watch`: the page of `report`, live on this machine's own address, while runs train. It reads and never writes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{machine, put, say};
use crate::error::{Error, Result};
use crate::report::page;
use crate::report::{Contrasts, Report, Room};

/// `watch`.
#[derive(Args)]
pub struct Watch {
    /// Run directories, or directories of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The port; 0 takes a free one.
    #[arg(long, default_value_t = 8008)]
    port: u16,
}

/// How often a request to stop, and a new reader, is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How long one browser may take over its request, and over reading.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Most lines of it.
const LINES: usize = 64;

/// Serves the page until Ctrl-C.
pub fn watch(w: &Watch) -> Result<()> {
    render(&w.runs)?;
    let cancel = machine::context_of("cpu", 1, true)?.cancel;
    let failed = |e: std::io::Error| {
        Error::environment(format!("cannot serve on port {}: {e}", w.port))
            .hint("another program may have it: --port 0 takes a free one")
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, w.port)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    put(&format!("http://{address}/"))?;
    say("Ctrl-C ends it; nobody but this machine can see it, and it writes nothing");
    while cancel.check().is_ok() {
        match listener.accept() {
            // A browser that left, or is too slow, is no error of ours.
            Ok((stream, _)) => drop(serve(stream, address, &w.runs)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

/// Answers one request. One connection after another: a page takes moments, and its readers are few.
fn serve(mut stream: TcpStream, address: SocketAddr, runs: &[PathBuf]) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut head, mut part) = (Vec::new(), [0; 4096]);
    let answer = loop {
        let n = stream.read(&mut part)?;
        head.extend_from_slice(&part[..n]);
        match answer(&head, address, runs) {
            Some(answer) => break answer,
            None if n == 0 => return Ok(()),
            None if head.len() > HEAD => {
                break Answer::text("431 Request Header Fields Too Large", "too long a request");
            }
            None => {}
        }
    };
    stream.write_all(&answer.bytes())
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
    /// Whether only the head was asked for.
    bare: bool,
}

impl Answer {
    fn text(status: &'static str, body: &str) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", body: body.into(), bare: false }
    }

    fn bytes(&self) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        );
        let body = if self.bare { "" } else { &self.body };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}

/// What a request's head is answered; `None` while it is not whole.
fn answer(head: &[u8], address: SocketAddr, runs: &[PathBuf]) -> Option<Answer> {
    let mut lines = [httparse::EMPTY_HEADER; LINES];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return None,
        Err(e) => return Some(Answer::text("400 Bad Request", &e.to_string())),
    }
    let host = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("host")).map_or(&b""[..], |h| h.value);
    if ![address.to_string(), format!("localhost:{}", address.port())].iter().any(|own| own.as_bytes() == host) {
        // Another site's name that leads to this machine must not read it.
        return Some(Answer::text("403 Forbidden", "this page is for this machine alone"));
    }
    let bare = request.method == Some("HEAD");
    if !bare && request.method != Some("GET") {
        return Some(Answer::text("405 Method Not Allowed", "this page is read-only"));
    }
    if request.path != Some("/") {
        return Some(Answer::text("404 Not Found", "there is one page: /"));
    }
    Some(match render(runs) {
        Ok(body) => Answer { status: "200 OK", kind: "text/html; charset=utf-8", body, bare },
        Err(e) => Answer::text("500 Internal Server Error", &e.to_string()),
    })
}

/// The page as the runs are now.
fn render(runs: &[PathBuf]) -> Result<String> {
    let report = Report::running(runs)?;
    let view = report.summary(&Contrasts::of(&report)?, Room::default());
    let names: Vec<String> = runs.iter().map(|p| p.display().to_string()).collect();
    page::html(&names.join(", "), &view, &report, true)
}
