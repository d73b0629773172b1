//! Against a server on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;
use crate::mllm::judge::vqa::Share;

/// Serves these responses, one a request, and gives what was asked.
fn serve(responses: Vec<(u16, String)>) -> (String, JoinHandle<Vec<(String, Value)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let served = move || {
        let answer = |(status, body): (u16, String)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                head.push_str(&line);
            }
            let mut body_read = vec![0; length];
            reader.read_exact(&mut body_read).unwrap();
            let close = "Retry-After: 0\r\nConnection: close";
            let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{close}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).unwrap();
            (head, serde_json::from_slice(&body_read).unwrap())
        };
        responses.into_iter().map(answer).collect()
    };
    (address, std::thread::spawn(served))
}

fn says(text: &str) -> (u16, String) {
    (200, json!({ "choices": [{ "message": { "role": "assistant", "content": text } }] }).to_string())
}

fn open(endpoint: &str, verdicts: &Path, retries: usize) -> Endpoint {
    let config = JudgeConfig {
        endpoint: endpoint.into(),
        model: "judge-1".into(),
        key_variable: "FEDLLAVA_NO_SUCH_KEY".into(),
        timeout: 10,
        retries,
        ..JudgeConfig::default()
    };
    Endpoint { pause: Duration::from_millis(1), ..Endpoint::open(&config, verdicts).unwrap() }
}

const CASES: [Case; 3] = [
    Case { id: "1", kind: Some(AnswerType::Open), question: "Where?", right: "left", given: "on the left" },
    Case { id: "2", kind: Some(AnswerType::Closed), question: "Air?", right: "no", given: "yes" },
    Case { id: "3", kind: Some(AnswerType::Closed), question: "Lung?", right: "yes", given: "yes" },
];

#[test]
fn a_busy_server_is_asked_again_and_a_second_run_asks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cx) = (dir.path().join("verdicts.jsonl"), Context::cpu(1));
    let responses =
        vec![(503, String::new()), says("Correctness: 1"), (429, "{}".into()), says("Correctness: 0"), says("no idea")];
    let (address, served) = serve(responses);
    let judged = open(&address, &path, 3).judge(&CASES, &cx).unwrap();
    assert_eq!((judged.asked, judged.unjudged), (3, 1));
    assert_eq!(judged.scores.open, Share { right: 1, all: 1 });
    assert_eq!(judged.scores.closed, Share { right: 0, all: 2 });
    let requests = served.join().unwrap();
    assert_eq!(requests.len(), 5);
    let (head, body) = &requests[0];
    assert!(head.starts_with("POST /v1/chat/completions ") && !head.to_ascii_lowercase().contains("authorization"));
    assert_eq!(
        (&body["model"], &body["temperature"], &body["max_tokens"]),
        (&json!("judge-1"), &json!(0), &json!(100))
    );
    let asked = body["messages"][0]["content"].as_str().unwrap();
    assert!(asked.contains("Where?") && asked.contains("left") && asked.contains("on the left"), "{asked}");
    // Nobody listens any more.
    let again = open(&address, &path, 0).judge(&CASES, &cx).unwrap();
    assert_eq!(again, Judgements { asked: 0, ..judged });
}

#[test]
fn what_was_judged_before_the_server_went_away_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cx) = (dir.path().join("verdicts.jsonl"), Context::cpu(1));
    let (address, served) = serve(vec![says("Correctness: 1")]);
    let e = open(&address, &path, 1).judge(&CASES, &cx).unwrap_err();
    assert!(e.to_string().contains("sample 2") && e.to_string().contains("2 times"), "{e}");
    assert_eq!(e.class().exit_code(), 4);
    served.join().unwrap();
    // A torn last line costs that line alone.
    let text = fsx::read_text(&path).unwrap();
    std::fs::write(&path, format!("{text}{{\"asked\": \"")).unwrap();
    let (address, served) = serve(vec![says("Correctness: 0"), says("Correctness: 1")]);
    let judged = open(&address, &path, 0).judge(&CASES, &cx).unwrap();
    assert_eq!((judged.asked, judged.scores.overall), (2, Share { right: 2, all: 3 }));
    served.join().unwrap();
}

#[test]
fn a_refusal_is_an_error_at_once_and_names_the_keys_place() {
    let dir = tempfile::tempdir().unwrap();
    let (address, served) = serve(vec![(401, "{\"error\": \"no key\"}".into())]);
    let e = open(&address, &dir.path().join("v.jsonl"), 5).judge(&CASES, &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("status 401") && e.contains("no key") && e.contains("FEDLLAVA_NO_SUCH_KEY"), "{e}");
    served.join().unwrap();
}

#[test]
fn another_model_or_another_answer_is_another_question() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cx) = (dir.path().join("verdicts.jsonl"), Context::cpu(1));
    let (address, served) = serve(vec![says("Correctness: 1"), says("Correctness: 0"), says("Correctness: 0")]);
    let mut judge = open(&address, &path, 0);
    assert_eq!(judge.judge(&CASES[..1], &cx).unwrap().asked, 1);
    let other = Case { given: "right", ..CASES[0].clone() };
    assert_eq!(judge.judge(&[other], &cx).unwrap().asked, 1);
    judge.config.model = "judge-2".into();
    assert_eq!(judge.judge(&CASES[..1], &cx).unwrap().asked, 1);
    served.join().unwrap();
}

#[test]
fn a_verdict_is_zero_or_one_behind_its_word() {
    let cases = [
        ("Correctness: 1", Some(true)),
        ("I think.\nCorrectness:\n 0.\nCorrectness: 1", Some(false)),
        ("Correctness: 0.5", None),
        ("Correctness: 5", None),
        ("Correctness: yes", None),
        ("1", None),
    ];
    for (said, want) in cases {
        assert_eq!(verdict(said), want, "{said:?}");
    }
}

#[test]
fn a_judge_is_off_unless_an_address_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let e = Endpoint::open(&JudgeConfig::default(), &dir.path().join("v")).err().unwrap().to_string();
    assert!(e.contains("judge.endpoint is empty"), "{e}");
    let bad = JudgeConfig { endpoint: "localhost:1".into(), ..JudgeConfig::default() };
    assert!(bad.check().unwrap_err().to_string().contains("http://localhost:8000/v1"));
}
