//! `tussock account`: where samples are committed, and what to do when such a place is gone for good.

use clap::{Args, Subcommand};
use serde_json::Value;
use tussock::admin::Request;

use crate::client::{NodeArgs, SOON, ask, name, show, word};
use crate::output::{Failure, Format, table};

#[derive(Debug, Subcommand)]
pub enum AccountVerb {
    /// The account of a node, and what its samples wait for
    Show(NodeArgs),
    /// Gives up an account whose owner is gone for good
    ///
    /// What waits for it goes to another account, and what was committed in it does not count any more. To be run on the
    /// node that owns the other account, while it is the root.
    Retire(RetireArgs),
}

#[derive(Debug, Args)]
pub struct RetireArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The account that is gone
    account: String,
    /// The account of this node
    #[arg(long, value_name = "ACCOUNT")]
    into: String,
}

pub async fn run(verb: &AccountVerb, format: Format) -> Result<u8, Failure> {
    match verb {
        AccountVerb::Show(node) => {
            let data = ask(node, &Request::Account, SOON).await?;
            show("account_show", &data, format, drawn);
        }
        AccountVerb::Retire(RetireArgs { node, account, into }) => {
            let request = Request::Retire { retired: account.clone(), into: into.clone() };
            let data = ask(node, &request, SOON).await?;
            show("account_retire", &data, format, |d| {
                format!("{} is retired; what waits for it goes to {}\n", word(&d["account"]), word(&d["into"]))
            });
        }
    }
    Ok(0)
}

fn drawn(data: &Value) -> String {
    let mut text = match &data["own"] {
        Value::Null => format!("{} commits nothing itself\n", name(&data["node"])),
        own => format!(
            "{} owns {}: {} samples of {} origins, {}\n",
            name(&data["node"]),
            word(&own["account"]),
            word(&own["samples"]),
            word(&own["origins"]),
            if own["kept"] == "disk" { "on disk" } else { "in memory" }
        ),
    };
    for retired in data["own"]["retired"].as_array().into_iter().flatten() {
        let by = name(&retired["by"]);
        text += &format!("retired     {} into {} by {by}\n", word(&retired["account"]), word(&retired["into"]));
    }
    text += &format!("samples go to {}\n", word(&data["root"]));
    let rows: Vec<_> = data["waiting"].as_array().into_iter().flatten().collect();
    if !rows.is_empty() {
        let rows: Vec<_> = rows.iter().map(|w| vec![word(&w["account"]), word(&w["samples"])]).collect();
        text += &table(&["wait for", "samples"], &rows);
    }
    text
}
