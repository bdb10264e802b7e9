//! Where keys come from when nobody sets them: each source gives one, and the server accepts no other.

use std::path::Path;

use fake_s3::{Credentials, FakeS3};

use super::stub::{Seen, Stub, TOKEN_TTL};
use super::{bytes, cat, code, put_both, text};

const KEY: &str = "ASIAFOUND";
const SECRET: &str = "found/secret+";
const TOKEN: &str = "found/token+with=odd";

/// Both objects are read with the key that these variables lead to, over both transports.
fn assert_found(variables: &[(&str, String)]) {
    let server = FakeS3::builder()
        .auth(Credentials::new(KEY, SECRET).with_token(TOKEN))
        .start()
        .unwrap();
    put_both(&server, "bucket");
    let mut all = vec![
        ("AWS_ENDPOINT_URL_S3", server.endpoint()),
        // Those that `cat` sets would be found first.
        ("AWS_ACCESS_KEY_ID", String::new()),
        ("AWS_SECRET_ACCESS_KEY", String::new()),
    ];
    all.extend(variables.iter().cloned());
    for transport in ["direct", "stock"] {
        server.clear_log();
        let objects = ["s3://bucket/dir/small", "s3://bucket/dir/large"];
        let output = cat(&all, &["--transport", transport, objects[0], objects[1]]);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        assert!(output.stdout == bytes(), "other bytes");
        let log = server.log();
        assert!(!log.is_empty() && log.iter().all(|entry| entry.authenticated));
    }
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// The three values under the names that a source gives them.
fn json(id: &str, token: &str, rest: &str) -> String {
    format!(
        r#"{{"{id}": "{KEY}", "SecretAccessKey": "{SECRET}", "{token}": "{TOKEN}",
            "Expiration": "2099-01-01T00:00:00Z", {rest}}}"#
    )
}

#[test]
fn a_process_of_the_profile() {
    let dir = tempfile::tempdir().unwrap();
    let keys = json("AccessKeyId", "SessionToken", r#""Version": 1"#);
    let keys = write(dir.path(), "keys.json", &keys);
    let profile = format!("[profile of-tests]\ncredential_process = cat {keys}\n");
    assert_found(&[
        ("AWS_CONFIG_FILE", write(dir.path(), "config", &profile)),
        ("AWS_PROFILE", "of-tests".into()),
    ]);
}

#[test]
fn a_container_with_a_token_in_a_file() {
    let stub = Stub::answering(|seen: &Seen| {
        if seen.target != "/keys" || seen.header("authorization") != Some("let me in") {
            return (403, "{}".into());
        }
        (200, json("AccessKeyId", "Token", r#""RoleArn": "role""#))
    });
    let dir = tempfile::tempdir().unwrap();
    let token = write(dir.path(), "token", "let me in");
    let uri = format!("{}/keys", stub.url());
    assert_found(&[
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
    ]);
    assert!(!stub.seen().is_empty());
}

/// Version 2 of the service: nothing without a token, which a PUT gives.
#[test]
fn the_instances_metadata() {
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    let stub = Stub::answering(|seen: &Seen| {
        let has_token = seen.header("x-aws-ec2-metadata-token") == Some("imds-token");
        match (seen.method.as_str(), seen.target.as_str()) {
            ("PUT", "/latest/api/token") if seen.header(TOKEN_TTL).is_some() => {
                (200, "imds-token".into())
            }
            ("GET", _) if !has_token => (401, String::new()),
            ("GET", ROLES) => (200, "role".into()),
            ("GET", target) if target.strip_prefix(ROLES) == Some("role") => {
                let rest = r#""Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2024-01-01T00:00:00Z""#;
                (200, json("AccessKeyId", "Token", rest))
            }
            _ => (404, String::new()),
        }
    });
    assert_found(&[
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", stub.url()),
        ("AWS_EC2_METADATA_DISABLED", "false".into()),
    ]);
    let first = &stub.seen()[0];
    assert_eq!(first.target, "/latest/api/token");
}

#[test]
fn a_web_identity() {
    let stub = Stub::answering(|seen: &Seen| {
        let asks = seen.body.contains("Action=AssumeRoleWithWebIdentity")
            && seen.body.contains("WebIdentityToken=signed-by-the-cluster")
            && seen
                .body
                .contains("RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Freader");
        if !asks {
            return (400, String::new());
        }
        let answer = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{KEY}</AccessKeyId>\
             <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken>\
             <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser>\
             <AssumedRoleId>AROA:s</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/reader/s</Arn>\
             </AssumedRoleUser></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        );
        (200, answer)
    });
    let dir = tempfile::tempdir().unwrap();
    let token = write(dir.path(), "token", "signed-by-the-cluster");
    assert_found(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
        (
            "AWS_ROLE_ARN",
            "arn:aws:iam::123456789012:role/reader".into(),
        ),
        ("AWS_ROLE_SESSION_NAME", "s".into()),
        ("AWS_ENDPOINT_URL_STS", stub.url()),
    ]);
    assert!(!stub.seen().is_empty());
}
