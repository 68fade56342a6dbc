//! Accounts: what `tussock account` shows and does.

use serde_json::{Value, json};

use crate::admin::Refused;
use crate::admin::shapes::{Names, busy};
use crate::node::{Node, NodeError};
use crate::proto::account::AccountId;
use crate::proto::retirement::{RetireError, Retirement};

pub async fn show(node: &Node) -> Result<Value, Refused> {
    let report = node.router().account().await.map_err(|error| busy(&error.into()))?;
    let names = Names::of(node);
    let own = report.own.map(|own| {
        json!({
            "account": own.id.to_string(),
            "samples": own.samples,
            "origins": own.origins,
            "kept": if node.journal().on_disk { "disk" } else { "memory" },
            "retired": own.retirements.iter().map(|retirement| shape(&names, retirement)).collect::<Vec<_>>(),
        })
    });
    let waiting = report
        .waiting
        .iter()
        .map(|(account, samples)| json!({"account": account.map(|account| account.to_string()), "samples": samples}));
    Ok(json!({
        "node": names.node(node.id()),
        "own": own,
        "root": report.root.map(|account| account.to_string()),
        "waiting": waiting.collect::<Vec<_>>(),
    }))
}

pub async fn retire(node: &Node, retired: &str, into: &str) -> Result<Value, Refused> {
    let account = |text: &str| {
        let fix = "`tussock account show` prints the accounts that a node's samples wait for";
        text.parse::<AccountId>().map_err(|error| Refused::new(2, "bad_account", error.to_string(), fix))
    };
    let (retired, into) = (account(retired)?, account(into)?);
    if retired == into {
        return Err(Refused::new(2, "bad_account", "an account is retired into another one", "name two accounts"));
    }
    match node.router().retire(retired, into).await {
        Ok(retirement) => Ok(shape(&Names::of(node), &retirement)),
        Err(NodeError::Retire(error)) => Err(refused(&error)),
        Err(other) => Err(busy(&other)),
    }
}

fn shape(names: &Names, retirement: &Retirement) -> Value {
    json!({
        "account": retirement.retired.to_string(),
        "into": retirement.into.to_string(),
        "by": names.node(retirement.by),
    })
}

fn refused(error: &RetireError) -> Refused {
    let fix = match error {
        RetireError::NotOurs { .. } => "run it on the node whose account is the one behind --into",
        RetireError::NotTheRoot { .. } => "retire it into the account that samples go to, on the root",
        RetireError::InUse { .. } => "stop that node for good first, or leave the account as it is",
        RetireError::TooMany { .. } => "retire it into another account",
        RetireError::Journal => "make room on the disk and try again",
    };
    Refused::new(1, "not_retired", error.to_string(), fix)
}
