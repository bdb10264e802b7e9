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

/// The token service's answer to an action.
fn assumed(action: &str) -> String {
    format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <{action}Result><Credentials><AccessKeyId>{KEY}</AccessKeyId>\
         <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken>\
         <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser>\
         <AssumedRoleId>AROA:s</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/reader/s</Arn>\
         </AssumedRoleUser></{action}Result></{action}Response>"
    )
}

#[test]
fn the_environment() {
    assert_found(&[
        ("AWS_ACCESS_KEY_ID", KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
        ("AWS_SESSION_TOKEN", TOKEN.into()),
    ]);
}

/// In the files where the AWS CLI keeps them, found through `HOME`.
#[test]
fn a_profile_of_the_home_directory() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let keys = format!(
        "[of-tests]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
    );
    write(home.path(), ".aws/credentials", &keys);
    assert_found(&[
        ("HOME", home.path().display().to_string()),
        ("AWS_PROFILE", "of-tests".into()),
    ]);
}

/// A profile may name a role and whose keys take it on.
#[test]
fn a_role_that_a_profile_takes_on() {
    let stub = Stub::answering(|seen: &Seen| {
        let asks = seen.body.contains("Action=AssumeRole&")
            && seen
                .body
                .contains("RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Freader")
            && seen
                .header("authorization")
                .is_some_and(|signed| signed.contains("Credential=AKIDBASE/"));
        match asks {
            true => (200, assumed("AssumeRole")),
            false => (400, String::new()),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let profiles = "[profile base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = base\n\
        [profile of-tests]\nrole_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = base\n";
    assert_found(&[
        ("AWS_CONFIG_FILE", write(dir.path(), "config", profiles)),
        ("AWS_PROFILE", "of-tests".into()),
        ("AWS_ENDPOINT_URL_STS", stub.url()),
    ]);
    assert!(!stub.seen().is_empty());
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

/// What `aws sso login` leaves in the home directory: a token under the SHA-1 of what names it.
fn signed_in(sha1: &str, token: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join(".aws/sso/cache")).unwrap();
    write(home.path(), &format!(".aws/sso/cache/{sha1}.json"), token);
    home
}

/// The portal of a company's SSO: keys of a role for whoever brings the token.
fn portal(seen: &Seen) -> (u16, String) {
    let path = "/federation/credentials?";
    let asks = seen.target.starts_with(path)
        && seen.target.contains("role_name=reader")
        && seen.target.contains("account_id=123456789012");
    match (asks, seen.header("x-amz-sso_bearer_token")) {
        (true, Some("signed-in")) => {
            let keys = format!(
                r#"{{"roleCredentials": {{"accessKeyId": "{KEY}", "secretAccessKey": "{SECRET}",
                    "sessionToken": "{TOKEN}", "expiration": 4070908800000}}}}"#
            );
            (200, keys)
        }
        _ => (401, r#"{"message": "not signed in"}"#.into()),
    }
}

const ROLE: &str = "sso_account_id = 123456789012\nsso_role_name = reader\n";
const PORTAL: &str = "sso_region = eu-west-1\nsso_start_url = https://portal.test/start\n";

/// A profile of the older form, which names the portal itself.
#[test]
fn a_profile_that_signed_in() {
    let stub = Stub::answering(portal);
    // Of https://portal.test/start.
    let home = signed_in(
        "b741460c3524ff970fd9361d726758c855c75204",
        r#"{"accessToken": "signed-in", "expiresAt": "2099-01-01T00:00:00Z"}"#,
    );
    let profile = format!("[profile of-tests]\n{ROLE}{PORTAL}");
    assert_found(&[
        ("HOME", home.path().display().to_string()),
        ("AWS_CONFIG_FILE", write(home.path(), "config", &profile)),
        ("AWS_PROFILE", "of-tests".into()),
        ("AWS_ENDPOINT_URL_SSO", stub.url()),
    ]);
    assert!(!stub.seen().is_empty());
}

/// A session's token that is over is renewed, without anybody at the keyboard.
#[test]
fn an_sso_session_that_is_renewed() {
    let stub = Stub::answering(portal);
    let renewing = Stub::answering(|seen: &Seen| {
        let asks = seen.target == "/token"
            && seen.body.contains(r#""refreshToken":"once-more""#)
            && seen.body.contains(r#""grantType":"refresh_token""#);
        match asks {
            true => (
                200,
                r#"{"accessToken": "signed-in", "expiresIn": 28800, "tokenType": "Bearer"}"#.into(),
            ),
            false => (400, "{}".into()),
        }
    });
    // Of "tests".
    let home = signed_in(
        "04d13fd0aa6f0197cf2c999019a607c36c81eb9f",
        r#"{"accessToken": "over", "expiresAt": "2020-01-01T00:00:00Z", "refreshToken": "once-more",
            "clientId": "client", "clientSecret": "its-secret", "registrationExpiresAt": "2099-01-01T00:00:00Z",
            "region": "eu-west-1", "startUrl": "https://portal.test/start"}"#,
    );
    let profile =
        format!("[profile of-tests]\nsso_session = tests\n{ROLE}[sso-session tests]\n{PORTAL}");
    assert_found(&[
        ("HOME", home.path().display().to_string()),
        ("AWS_CONFIG_FILE", write(home.path(), "config", &profile)),
        ("AWS_PROFILE", "of-tests".into()),
        ("AWS_ENDPOINT_URL_SSO", stub.url()),
        ("AWS_ENDPOINT_URL_SSO_OIDC", renewing.url()),
    ]);
    assert!(!stub.seen().is_empty());
    assert_eq!(renewing.seen().len(), 1, "the new token was kept");
}

/// Nobody signed in: permission denied, with what to do.
#[test]
fn a_profile_that_did_not_sign_in() {
    let home = tempfile::tempdir().unwrap();
    let profile = format!("[profile of-tests]\n{ROLE}{PORTAL}");
    let output = cat(
        &[
            ("HOME", home.path().display().to_string()),
            ("AWS_CONFIG_FILE", write(home.path(), "config", &profile)),
            ("AWS_PROFILE", "of-tests".into()),
            ("AWS_ACCESS_KEY_ID", String::new()),
            ("AWS_SECRET_ACCESS_KEY", String::new()),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9".into()),
        ],
        &["s3://bucket/key"],
    );
    let said = text(&output.stderr);
    assert_eq!(code(&output), 4, "{said}");
    assert!(said.contains("aws sso login"), "{said}");
}

/// ECS by the whole address, as agents on other hosts give it, and the token in the environment.
#[test]
fn a_container_with_a_token_in_the_environment() {
    let stub =
        Stub::answering(
            |seen: &Seen| match (seen.target.as_str(), seen.header("authorization")) {
                ("/v2/credentials/7", Some("let me in")) => {
                    (200, json("AccessKeyId", "Token", r#""RoleArn": "role""#))
                }
                _ => (403, "{}".into()),
            },
        );
    assert_found(&[
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("{}/v2/credentials/7", stub.url()),
        ),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let me in".into()),
    ]);
    assert!(!stub.seen().is_empty());
}

/// EKS's pod identity.
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
        (200, assumed("AssumeRoleWithWebIdentity"))
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
