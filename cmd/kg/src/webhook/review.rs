//! One admission review: bytes of a stranger in, the answer for the API server out. Whether a Peer is let in is
//! judged by the code that agents read it with.

use kilo_mesh::{Finding, Peer, read_peer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The most findings on one object that are told; the rest is counted.
const TOLD: usize = 8;

/// What the API server asks, as much of it as matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Review {
    kind: String,
    api_version: String,
    request: Option<Request>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    uid: String,
    operation: String,
    object: Value,
}

/// The answer as it goes over the wire.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    kind: &'static str,
    api_version: &'static str,
    response: Verdict,
    /// What was to be done: `CREATE`, `UPDATE`, `DELETE`, `CONNECT`; `other` for anything else, so that whoever
    /// asks cannot make up metrics.
    #[serde(skip)]
    pub operation: &'static str,
}

#[derive(Debug, Serialize)]
struct Verdict {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    metadata: serde_json::Map<String, Value>,
    message: String,
}

impl Answer {
    /// Whether the object is let in.
    pub fn allowed(&self) -> bool {
        self.response.allowed
    }

    /// Why it is not.
    pub fn reason(&self) -> Option<&str> {
        self.response.status.as_ref().map(|status| status.message.as_str())
    }
}

/// Judges the body of a request with this `Content-Type`.
///
/// # Errors
/// Says what is wrong with a request that is no review of a Peer; the answer is then 400.
pub fn judge(content_type: Option<&str>, body: &[u8]) -> Result<Answer, String> {
    let given = content_type.unwrap_or_default();
    // Parameters such as a charset say nothing that JSON does not say by itself.
    let media = given.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return Err(format!("received Content-Type={}, expected application/json", shown(given)));
    }
    let review: Review =
        serde_json::from_slice(body).map_err(|error| format!("request could not be decoded: {error}"))?;
    if review.api_version != API_VERSION || review.kind != KIND {
        return Err(format!("only {KIND} of {API_VERSION} is supported"));
    }
    let Some(request) = review.request else { return Err("the review has no request".to_owned()) };
    let operation = match request.operation.as_str() {
        "CREATE" => "CREATE",
        "UPDATE" => "UPDATE",
        "DELETE" => "DELETE",
        "CONNECT" => "CONNECT",
        _ => "other",
    };
    let (refusal, warnings) = match operation {
        // There is no new object that could be wrong.
        "DELETE" | "CONNECT" => (None, Vec::new()),
        _ => examine(&request.object)?,
    };
    Ok(Answer {
        kind: KIND,
        api_version: API_VERSION,
        response: Verdict {
            uid: request.uid,
            allowed: refusal.is_none(),
            status: refusal.map(|message| Status { metadata: serde_json::Map::new(), message }),
            warnings,
        },
        operation,
    })
}

/// Why a Peer is refused, if it is, and what else there is to say.
fn examine(object: &Value) -> Result<(Option<String>, Vec<String>), String> {
    if !object.is_object() {
        return Err("the request has no object".to_owned());
    }
    let object = read_peer(object).map_err(|finding| format!("the object is no Peer: {finding}"))?;
    let (peer, findings) = Peer::from_object(&object);
    let told = tell(&findings);
    Ok(if peer.valid { (None, told) } else { (Some(told.join("; ")), Vec::new()) })
}

fn tell(findings: &[Finding]) -> Vec<String> {
    let mut told: Vec<String> = findings.iter().take(TOLD).map(ToString::to_string).collect();
    if findings.len() > TOLD {
        told.push(format!("{} more fields are wrong", findings.len() - TOLD));
    }
    told
}

/// The beginning of a text that goes into an answer and a log.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const JSON: Option<&str> = Some("application/json");
    const KEY: &str = "EWM8aBDkpBqdnpNWmWLKlGDCzPMn2MgAn7YV0O4E3GY=";

    fn review(operation: &str, object: &Value) -> Vec<u8> {
        json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
            "request": {"uid": "705ab4f5", "operation": operation, "object": object, "oldObject": {"a": [1]}},
        })
        .to_string()
        .into_bytes()
    }

    fn peer(spec: &Value) -> Value {
        json!({"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer", "metadata": {"name": "p"}, "spec": spec})
    }

    fn text(answer: &Answer) -> String {
        serde_json::to_string(answer).expect("JSON")
    }

    #[test]
    fn answers_are_those_of_upstream_to_the_byte() {
        let good = peer(&json!({"allowedIPs": ["10.5.0.1/32"], "publicKey": KEY}));
        let answer = judge(JSON, &review("CREATE", &good)).expect("a review");
        assert_eq!(
            text(&answer),
            r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"705ab4f5","allowed":true}}"#
        );
        let bad = peer(&json!({"allowedIPs": ["10.5.0.1"], "publicKey": KEY}));
        let answer = judge(JSON, &review("UPDATE", &bad)).expect("a review");
        assert_eq!((answer.allowed(), answer.operation), (false, "UPDATE"));
        assert_eq!(
            text(&answer),
            r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"705ab4f5","allowed":false,"status":{"metadata":{},"message":"Peer/p: spec.allowedIPs[0] \"10.5.0.1\": not a range ADDRESS/LENGTH; the peer is left out"}}}"#
        );
    }

    /// The rules of upstream's validation, one after the other.
    #[test]
    fn a_bad_peer_is_refused_with_the_reason() {
        let refused = [
            (json!({"allowedIPs": [""], "publicKey": KEY}), "spec.allowedIPs[0]"),
            (
                json!({"endpoint": {"dnsOrIP": {}, "port": 1}, "publicKey": KEY}),
                "neither a name nor an address",
            ),
            (json!({"endpoint": {"dnsOrIP": {"dns": "A_b"}, "port": 1}, "publicKey": KEY}), "\"A_b\""),
            (json!({"endpoint": {"dnsOrIP": {"ip": "1.2.3"}, "port": 1}, "publicKey": KEY}), "\"1.2.3\""),
            (
                json!({"endpoint": {"dnsOrIP": {"ip": "1.2.3.4"}, "port": 0}, "publicKey": KEY}),
                "spec.endpoint.port",
            ),
            (json!({"endpoint": {"dnsOrIP": {"ip": "1.2.3.4"}, "port": 65536}, "publicKey": KEY}), "65536"),
            (json!({"endpoint": {"dnsOrIP": {"ip": "1.2.3.4"}, "port": -1}, "publicKey": KEY}), "-1"),
            (json!({"persistentKeepalive": -5, "publicKey": KEY}), "-5"),
            (json!({"publicKey": "no key"}), "spec.publicKey"),
            (json!({}), "spec.publicKey"),
        ];
        for (spec, reason) in refused {
            let answer = judge(JSON, &review("CREATE", &peer(&spec))).expect("a review");
            assert!(!answer.allowed(), "{spec} is let in");
            assert!(answer.reason().is_some_and(|why| why.contains(reason)), "{spec}: {:?}", answer.reason());
        }
        let let_in = [
            json!({"allowedIPs": [], "publicKey": KEY}),
            json!({"allowedIPs": ["10.5.0.1/24"], "publicKey": format!("{KEY}\n")}),
            json!({"allowedIPs": ["10.5.0.1/24"], "publicKey": KEY, "presharedKey": "not looked at"}),
        ];
        for spec in let_in {
            let answer = judge(JSON, &review("CREATE", &peer(&spec))).expect("a review");
            assert!(answer.allowed(), "{spec}: {:?}", answer.reason());
        }
    }

    #[test]
    fn what_is_odd_is_a_warning_and_secrets_are_not_told() {
        let odd =
            peer(&json!({"allowedIPs": ["10.5.0.1/32"], "publicKey": KEY, "presharedKey": "hush hush"}));
        let answer = text(&judge(JSON, &review("CREATE", &odd)).expect("a review"));
        assert!(answer.contains("\"allowed\":true,\"warnings\":[\"Peer/p: spec.presharedKey"), "{answer}");
        assert!(!answer.contains("hush"), "{answer}");
        let many = peer(&json!({"allowedIPs": vec!["x".repeat(1000); 10_000], "publicKey": KEY}));
        let answer = judge(JSON, &review("CREATE", &many)).expect("a review");
        let reason = answer.reason().expect("a reason");
        assert!(reason.len() < 4000 && reason.ends_with("9992 more fields are wrong"), "{reason}");
    }

    #[test]
    fn a_review_without_request_or_object_is_refused_and_a_deletion_is_not() {
        let none = br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#;
        assert_eq!(judge(JSON, none).expect_err("no request"), "the review has no request");
        assert!(judge(JSON, &review("CREATE", &Value::Null)).is_err());
        let answer = judge(JSON, &review("DELETE", &Value::Null)).expect("a review");
        assert!(answer.allowed() && answer.operation == "DELETE");
        assert_eq!(
            judge(JSON, &review("x".repeat(99).as_str(), &peer(&json!({})))).expect("one").operation,
            "other"
        );
    }

    #[test]
    fn a_content_type_may_have_parameters() {
        let good = review("CREATE", &peer(&json!({"allowedIPs": ["10.5.0.1/32"], "publicKey": KEY})));
        for kind in ["application/json", "application/json; charset=utf-8", "Application/JSON ;a=b"] {
            assert!(judge(Some(kind), &good).is_ok(), "{kind}");
        }
        for kind in
            [None, Some(""), Some("text/plain"), Some("application/jsonp"), Some("x; application/json")]
        {
            assert!(judge(kind, &good).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn other_bodies_are_errors() {
        let deep = "[".repeat(1 << 20);
        let v1beta1 = r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{}}"#;
        let list = r#"["AdmissionReview","admission.k8s.io/v1",["u","CREATE",{}]]"#;
        let types = review("CREATE", &peer(&json!({"allowedIPs": 7})));
        let types = std::str::from_utf8(&types).expect("text");
        for body in
            ["", "{", "null", "7", "{}", &deep, v1beta1, list, types, "\u{0}", r#"{"request":{"uid":7}}"#]
        {
            assert!(judge(JSON, body.as_bytes()).is_err(), "{}", &body[..body.len().min(100)]);
        }
        assert!(judge(JSON, &[0xff, 0xfe]).is_err());
    }
}
