//! Fetching one commit's files into the Hub's cache, laid out as huggingface_hub has it: `blobs/<etag>`, links to them
//! below `snapshots/<commit>`, `refs/main`.
//!
//! The token goes to the endpoint and nowhere else, however often it redirects. What a server names (a commit, an etag, a
//! file) is looked at before it becomes a file name; a blob whose etag is a digest must have it. A server that says
//! nothing for a while is given up.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use sha1::Digest;
use ureq::{Agent, Body, http::Response};

use super::wanted;
use crate::error::{Error, Place, Result};
use crate::exec::{self, Cancel};
use crate::fsx;

/// How long a server may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a request to stop is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Most redirections of one request.
const REDIRECTIONS: usize = 8;
/// Most bytes of what a repository says of itself.
const FACTS: u64 = 1 << 24;

/// A Hub, and what it may be told.
#[derive(Clone)]
pub(super) struct Hub {
    /// `https://huggingface.co`, without a slash at the end.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<String>,
    /// How long it may say nothing.
    pub patience: Duration,
}

/// What a repository says of itself.
#[derive(Deserialize)]
struct Facts {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    pub fn new(endpoint: Option<String>, token: Option<String>) -> Self {
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into());
        Hub { endpoint: endpoint.trim_end_matches('/').to_string(), token, patience: PATIENCE }
    }

    /// The snapshot's folder of `main`, its files fetched below `cache`. A request to stop is heard at once; what was
    /// fetched stays, and the next try goes on from there.
    pub fn fetch(&self, cache: &Path, id: &str, cancel: &Cancel) -> Result<PathBuf> {
        let (hub, folder, name, stop) = (self.clone(), super::repository(cache, id), id.to_string(), cancel.clone());
        patiently(cancel, move || hub.fetch_here(&folder, &name, &stop))
    }

    fn fetch_here(&self, repository: &Path, id: &str, cancel: &Cancel) -> Result<PathBuf> {
        let url = format!("{}/api/models/{id}/revision/main", self.endpoint);
        let mut text = String::new();
        let answer = self.ask(&url, 0)?.0.into_body().into_reader();
        answer.take(FACTS).read_to_string(&mut text).map_err(|e| lost(&url, &e))?;
        let facts: Facts = fsx::json(&text).at(|| url.clone())?;
        if !(7..=64).contains(&facts.sha.len()) || !facts.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(strange(&url, "commit", &facts.sha));
        }
        let files: Vec<String> = facts.siblings.into_iter().map(|s| s.rfilename).collect();
        let snapshot = repository.join("snapshots").join(&facts.sha);
        let files = wanted(&files);
        if files.is_empty() {
            return Err(Error::data(format!("{id} has no model files")));
        }
        for name in files {
            if !is_plain(name) {
                return Err(strange(&url, "file", name));
            }
            if !snapshot.join(name).exists() {
                let url = format!("{}/{id}/resolve/{}/{name}", self.endpoint, facts.sha);
                let blob = self.blob(&url, &repository.join("blobs"), cancel)?;
                link(&blob, &snapshot.join(name))?;
            }
        }
        fsx::write_atomic(&repository.join("refs").join("main"), facts.sha.as_bytes())?;
        Ok(snapshot)
    }

    /// Asks for a URL from byte `from` on, through redirections: the answer, and the first answer's etag.
    fn ask(&self, url: &str, from: u64) -> Result<(Response<Body>, Option<String>)> {
        let agent: Agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_resolve(Some(self.patience))
            .timeout_connect(Some(self.patience))
            .timeout_recv_response(Some(self.patience))
            .timeout_per_read(Some(self.patience))
            .build()
            .into();
        let (mut at, mut etag) = (url.to_string(), None);
        for _ in 0..=REDIRECTIONS {
            let mut request = agent.get(&at).header("User-Agent", concat!("fedllava/", env!("CARGO_PKG_VERSION")));
            if let Some(token) = self.token.as_ref().filter(|_| origin(&at) == origin(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let answer = request.call().map_err(|e| lost(&at, &e))?;
            let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
            etag = etag.or_else(|| header("x-linked-etag")).or_else(|| header("etag"));
            match answer.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => {
                    let to = header("location").ok_or_else(|| strange(&at, "redirection", ""))?;
                    at = joined(&at, &to).ok_or_else(|| strange(&at, "redirection", &to))?;
                }
                200..=299 => return Ok((answer, etag)),
                status => return Err(refused(&at, status)),
            }
        }
        Err(Error::environment(format!("{url}: more than {REDIRECTIONS} redirections")))
    }

    /// The blob behind a URL, fetched where it is not there.
    fn blob(&self, url: &str, blobs: &Path, cancel: &Cancel) -> Result<PathBuf> {
        let (first, etag) = self.ask(url, 0)?;
        let etag = etag.ok_or_else(|| strange(url, "etag", ""))?;
        let name = etag.trim_start_matches("W/").trim_matches('"');
        if !is_plain(name) {
            return Err(strange(url, "etag", &etag));
        }
        let (blob, part) = (blobs.join(name), blobs.join(format!("{name}.incomplete")));
        if blob.exists() {
            return Ok(blob);
        }
        fsx::create_dir(blobs)?;
        let lock = fsx::Lock::try_file(&blobs.join(format!("{name}.lock")))?;
        let _held =
            lock.ok_or_else(|| Error::environment(format!("{} is being fetched by another process", blob.display())))?;
        let mut file = fsx::append(&part)?;
        let there = file.metadata().map_err(|e| Error::io("look at", &part, e))?.len();
        let mut answer = first;
        if there > 0 {
            answer = self.ask(url, there)?.0;
            if answer.status().as_u16() != 206 {
                file.set_len(0).map_err(|e| Error::io("write", &part, e))?;
            }
        }
        receive(answer, url, &mut file, &part, cancel)?;
        if !has_digest(&part, name)? {
            std::fs::remove_file(&part).map_err(|e| Error::io("remove", &part, e))?;
            return Err(Error::data(format!("{url}: what came is not what its etag {name} is a digest of"))
                .hint("the same command fetches it again"));
        }
        std::fs::rename(&part, &blob).map_err(|e| Error::io("rename to", &blob, e))?;
        Ok(blob)
    }
}

/// Writes an answer's body to the end of a file.
fn receive(answer: Response<Body>, url: &str, file: &mut File, path: &Path, cancel: &Cancel) -> Result<()> {
    let length: Option<u64> = answer.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse().ok());
    let (mut body, mut buffer, mut came) = (answer.into_body().into_reader(), vec![0; 1 << 16], 0);
    loop {
        cancel.check()?;
        match body.read(&mut buffer).map_err(|e| lost(url, &e))? {
            0 => break,
            n => {
                file.write_all(&buffer[..n]).map_err(|e| Error::io("write", path, e))?;
                came += n as u64;
            }
        }
    }
    file.sync_all().map_err(|e| Error::io("write", path, e))?;
    match length {
        Some(length) if length != came => Err(lost(url, &format!("{came} of {length} bytes came"))),
        _ => Ok(()),
    }
}

/// Whether a file has the digest that an etag is: SHA-256 of a large file, git's SHA-1 of a small one. Other etags say
/// nothing.
fn has_digest(path: &Path, etag: &str) -> Result<bool> {
    if !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(true);
    }
    match etag.len() {
        64 => Ok(fsx::sha256_file(path)? == etag.to_ascii_lowercase()),
        40 => {
            let bytes = fsx::read(path)?;
            let git = [format!("blob {}\0", bytes.len()).as_bytes(), &bytes].concat();
            Ok(fsx::hex(sha1::Sha1::digest(&git)) == etag.to_ascii_lowercase())
        }
        _ => Ok(true),
    }
}

/// A link to a blob in a snapshot; a copy where there are no links.
fn link(blob: &Path, name: &Path) -> Result<()> {
    let failed = |e| Error::io("create", name, e);
    name.parent().map_or(Ok(()), fsx::create_dir)?;
    #[cfg(unix)]
    return std::os::unix::fs::symlink(Path::new("../../blobs").join(blob.file_name().unwrap_or_default()), name)
        .map_err(failed);
    #[cfg(not(unix))]
    std::fs::copy(blob, name).map(|_| ()).map_err(failed)
}

/// Whether a name that a server gave may be a file's.
fn is_plain(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.chars().all(ok)
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<&str> {
    let host = url.find("://").map(|at| at + 3)?;
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |n| host + n);
    Some(&url[..end]).filter(|o| o.len() > host && !o.contains('@'))
}

/// Where a redirection leads, over the web and never from an encrypted connection to an open one.
fn joined(base: &str, to: &str) -> Option<String> {
    let scheme = base.split("://").next()?;
    let url = match to {
        _ if to.starts_with("//") => format!("{scheme}:{to}"),
        _ if to.starts_with('/') => format!("{}{to}", origin(base)?),
        _ => to.to_string(),
    };
    let web = url.starts_with("https://") || (url.starts_with("http://") && scheme == "http");
    (web && origin(&url).is_some()).then_some(url)
}

fn lost(url: &str, why: &dyn std::fmt::Display) -> Error {
    Error::environment(format!("{}: {why}", shown(url)))
}

fn refused(url: &str, status: u16) -> Error {
    let error = Error::environment(format!("{}: status {status}", shown(url)));
    match status {
        401 | 403 => error.hint("a gated model needs HF_TOKEN, and its terms accepted on its page"),
        404 => error.hint("is its name right?"),
        _ => error,
    }
}

fn strange(url: &str, what: &str, name: &str) -> Error {
    let name: String = name.chars().take(100).collect();
    Error::data(format!("{}: the server names the {what} {name:?}, which is none", shown(url)))
        .hint("is HF_ENDPOINT right?")
}

/// A URL without what is signed into it.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// What `work` gives on a thread of its own; a request to stop is heard whatever it waits for.
fn patiently<T: Send + 'static>(cancel: &Cancel, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (send, receive) = mpsc::channel();
    let run = move || drop(send.send(exec::caught(work)));
    let started = std::thread::Builder::new().name("hub".into()).spawn(run);
    started.map_err(|e| Error::environment(format!("cannot start a thread: {e}")))?;
    loop {
        match receive.recv_timeout(LOOK) {
            Ok(done) => return done,
            Err(mpsc::RecvTimeoutError::Timeout) => cancel.check()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Error::defect("the fetching thread is gone")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use super::*;
    use crate::error::Class;

    /// Path and headers of a request, in lower case.
    type Asked = (String, String);
    type Answer = dyn Fn(&str, &str) -> Option<String> + Send + Sync;

    /// A server on this machine: its address, and what it was asked. No answer is a silence.
    fn serve(answer: Arc<Answer>) -> (u16, Arc<Mutex<Vec<Asked>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (answer.clone(), seen.clone());
                std::thread::spawn(move || one(stream, &*answer, &seen));
            }
        });
        (port, asked)
    }

    fn one(mut stream: TcpStream, answer: &Answer, seen: &Mutex<Vec<Asked>>) {
        let mut head = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
        let path = head.split(' ').nth(1).unwrap_or_default().to_string();
        let head = head.to_lowercase();
        seen.lock().unwrap().push((path.clone(), head.clone()));
        match answer(&path, &head) {
            Some(text) => drop(stream.write_all(text.as_bytes())),
            None => std::thread::sleep(Duration::from_secs(20)),
        }
    }

    fn ok(headers: &str, body: &str) -> Option<String> {
        Some(format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()))
    }

    fn to(place: &str, headers: &str) -> Option<String> {
        Some(format!(
            "HTTP/1.1 302 Found\r\n{headers}location: {place}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ))
    }

    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    fn facts(sha: &str, files: &[&str]) -> Option<String> {
        let siblings: Vec<_> = files.iter().map(|f| serde_json::json!({ "rfilename": f })).collect();
        ok("", &serde_json::json!({ "sha": sha, "siblings": siblings }).to_string())
    }

    fn hub(port: u16, patience: Duration) -> Hub {
        let endpoint = format!("http://127.0.0.1:{port}");
        Hub { patience, ..Hub::new(Some(endpoint), Some("secret".into())) }
    }

    fn fetch(port: u16, cache: &Path) -> Result<PathBuf> {
        hub(port, Duration::from_secs(5)).fetch(cache, "owner/name", &Cancel::default())
    }

    #[test]
    fn files_come_whole_and_the_token_goes_to_the_endpoint_alone() {
        let weights = "weights";
        let digest = fsx::sha256(weights.as_bytes());
        let (other, elsewhere) = serve(Arc::new(move |_: &str, _: &str| ok("", weights)));
        let linked = format!("x-linked-etag: \"{digest}\"\r\netag: \"other\"\r\n");
        let (port, asked) = serve(Arc::new(move |path: &str, _: &str| match path.rsplit('/').next().unwrap() {
            "main" => facts(SHA, &["config.json", "model.safetensors", "../evil.json", "README.md"]),
            "config.json" => ok("etag: \"abc\"\r\n", "{}"),
            _ => to(&format!("http://localhost:{other}/signed?x=1"), &linked),
        }));
        let cache = tempfile::tempdir().unwrap();
        let folder = fetch(port, cache.path()).unwrap();
        assert!(folder.ends_with(format!("models--owner--name/snapshots/{SHA}")));
        assert_eq!(fsx::read(&folder.join("model.safetensors")).unwrap(), weights.as_bytes());
        assert_eq!(fsx::read(&folder.join("config.json")).unwrap(), b"{}");
        assert_eq!(super::super::cached(cache.path(), "owner/name"), Some(folder.clone()));
        assert!(asked.lock().unwrap().iter().all(|(_, head)| head.contains("authorization: bearer secret")));
        let elsewhere = elsewhere.lock().unwrap();
        assert!(!elsewhere.is_empty() && elsewhere.iter().all(|(_, head)| !head.contains("authorization")));
        assert!(!fsx::list(&folder).unwrap().iter().any(|p| p.ends_with("README.md")));
    }

    #[test]
    fn what_a_hostile_server_names_is_no_file_name() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("a/b/c/cache");
        let before = || fsx::list(root.path()).unwrap().len();
        let cases: [(&str, &str, &str); 4] = [
            ("../../../../evil", "config.json", "etag: \"abc\"\r\n"),
            (SHA, "config.json", "etag: \"../../../../../evil\"\r\n"),
            (SHA, "config.json", ""),
            (SHA, "..\\evil.json", "etag: \"abc\"\r\n"),
        ];
        for (sha, file, etag) in cases {
            let (sha, file, etag) = (sha.to_string(), file.to_string(), etag.to_string());
            let (port, _) = serve(Arc::new(move |path: &str, _: &str| match path.ends_with("/main") {
                true => facts(&sha, &[&file]),
                false => ok(&etag, "{}"),
            }));
            let e = fetch(port, &cache).unwrap_err();
            assert!(e.class() == Class::Data && e.to_string().contains("which is none"), "{e}");
            assert!(before() <= 1, "nothing beside the cache");
        }
        // What came must be what its digest says; nothing of it stays.
        let (port, _) = serve(Arc::new(|path: &str, _: &str| match path.ends_with("/main") {
            true => facts(SHA, &["config.json"]),
            false => ok(&format!("etag: \"{}\"\r\n", "0".repeat(64)), "{}"),
        }));
        let e = fetch(port, &cache).unwrap_err().to_string();
        assert!(e.contains("is not what its etag"), "{e}");
        let blobs = fsx::list(&cache.join("models--owner--name/blobs")).unwrap();
        assert!(blobs.iter().all(|p| p.extension().is_some_and(|e| e == "lock")), "{blobs:?}");
    }

    #[test]
    fn a_silent_server_is_given_up_and_a_stop_is_heard_meanwhile() {
        let (port, _) = serve(Arc::new(|_: &str, _: &str| None));
        let cache = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let e = hub(port, Duration::from_millis(300)).fetch(cache.path(), "o/n", &Cancel::default()).unwrap_err();
        assert!(e.class() == Class::Environment && began.elapsed() < Duration::from_secs(5), "{e}");
        let cancel = Cancel::default();
        let stop = cancel.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            stop.stop();
        });
        let e = hub(port, Duration::from_secs(60)).fetch(cache.path(), "o/n", &cancel).unwrap_err();
        assert_eq!(e.class(), Class::Stopped);
    }

    #[test]
    fn a_fetch_that_broke_off_goes_on_where_it_was() {
        let (port, asked) = serve(Arc::new(|path: &str, head: &str| match path.ends_with("/main") {
            true => facts(SHA, &["config.json"]),
            false if head.contains("range: bytes=4-") => {
                Some("HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\nconnection: close\r\n\r\n5678".into())
            }
            false => ok("etag: \"abc\"\r\n", "12345678"),
        }));
        let cache = tempfile::tempdir().unwrap();
        let part = cache.path().join("models--owner--name/blobs/abc.incomplete");
        fsx::write_atomic(&part, b"1234").unwrap();
        let folder = fetch(port, cache.path()).unwrap();
        assert_eq!(fsx::read(&folder.join("config.json")).unwrap(), b"12345678");
        assert!(asked.lock().unwrap().iter().any(|(_, head)| head.contains("range: bytes=4-")) && !part.exists());
    }

    #[test]
    fn redirections_stay_on_the_web_and_are_never_opened() {
        let base = "https://a.b/c";
        assert_eq!(joined(base, "/d").unwrap(), "https://a.b/d");
        assert_eq!(joined(base, "//e/f").unwrap(), "https://e/f");
        assert_eq!(joined(base, "https://e/f").unwrap(), "https://e/f");
        for bad in ["http://a.b/c", "file:///etc/passwd", "https://x@e/f", "d", "https://"] {
            assert_eq!(joined(base, bad), None, "{bad}");
        }
        assert_eq!(origin("http://127.0.0.1:8811/x?y"), Some("http://127.0.0.1:8811"));
        assert_ne!(origin("http://127.0.0.1:8811"), origin("http://127.0.0.1:8812"));
    }
}
