//! The tree as text, as a graph, and on a map.

use serde_json::{Value, json};

use crate::client::{name, word};
use crate::output::Drawing;

/// What `topology` prints for people and for other tools.
pub fn draw(data: &Value, drawing: Option<Drawing>) -> String {
    let nodes = data["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    match drawing {
        Some(Drawing::Dot) => dot(nodes),
        Some(Drawing::Mermaid) => mermaid(nodes),
        Some(Drawing::Geojson) => format!("{}\n", geojson(nodes)),
        None => tree(nodes, &Value::Null, 0),
    }
}

fn tree(nodes: &[Value], parent: &Value, depth: usize) -> String {
    let mut text = String::new();
    for node in nodes.iter().filter(|node| depth < 16 && node["parent"]["id"] == parent["id"]) {
        text += &format!("{}{} {}\n", "  ".repeat(depth), name(&node["node"]), level(node));
        text += &tree(nodes, &node["node"], depth + 1);
    }
    text
}

/// A level, and the effective one where it differs.
fn level(node: &Value) -> String {
    match node["level"] == node["effective_level"] {
        true => word(&node["level"]),
        false => format!("{} as {}", word(&node["level"]), word(&node["effective_level"])),
    }
}

/// A node's name, or the beginning of its id.
fn label(node: &Value) -> String {
    let id = node["id"].as_str().unwrap_or_default();
    node["name"].as_str().map_or_else(|| id.chars().take(10).collect(), str::to_owned)
}

fn links(nodes: &[Value]) -> impl Iterator<Item = (&Value, &Value)> {
    nodes.iter().filter(|node| !node["parent"].is_null()).map(|node| (&node["node"], &node["parent"]))
}

/// Names are letters, digits and dashes: nothing in them needs to be escaped.
fn dot(nodes: &[Value]) -> String {
    let mut text = "digraph tussock {\n  rankdir=BT;\n".to_owned();
    for node in nodes {
        text += &format!("  {} [label=\"{}\\n{}\"];\n", node["node"]["id"], label(&node["node"]), level(node));
    }
    for (child, parent) in links(nodes) {
        text += &format!("  {} -> {};\n", child["id"], parent["id"]);
    }
    text + "}\n"
}

fn mermaid(nodes: &[Value]) -> String {
    let key = |node: &Value| format!("n{}", node["id"].as_str().unwrap_or_default().get(..16).unwrap_or_default());
    let mut text = "flowchart BT\n".to_owned();
    for node in nodes {
        text += &format!("  {}[\"{}<br>{}\"]\n", key(&node["node"]), label(&node["node"]), level(node));
    }
    for (child, parent) in links(nodes) {
        text += &format!("  {} --> {}\n", key(child), key(parent));
    }
    text
}

/// RFC 7946: longitude first. Nodes whose position is not known have no place on a map.
fn geojson(nodes: &[Value]) -> Value {
    let place = |id: &Value| {
        let node = nodes.iter().find(|node| node["node"]["id"] == *id)?;
        let position = node["position"].as_array()?;
        Some(json!([position.get(1)?, position.first()?]))
    };
    let feature = |kind: &str, coordinates: Value, properties: Value| {
        let geometry = json!({"type": kind, "coordinates": coordinates});
        json!({"type": "Feature", "geometry": geometry, "properties": properties})
    };
    let points = nodes.iter().filter_map(|node| {
        let mut properties = node.clone();
        let properties_of = properties.as_object_mut()?;
        properties_of.remove("position");
        Some(feature("Point", place(&node["node"]["id"])?, properties))
    });
    let lines = links(nodes).filter_map(|(child, parent)| {
        let ends = json!([place(&child["id"])?, place(&parent["id"])?]);
        Some(feature("LineString", ends, json!({"child": child, "parent": parent})))
    });
    json!({"type": "FeatureCollection", "features": points.chain(lines).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Value {
        let (root, leaf) = (json!({"id": "aa".repeat(32), "name": "hq"}), json!({"id": "bb".repeat(32), "name": null}));
        let node = |node: &Value, parent: &Value, position: Value| {
            json!({
                "node": node, "level": "squad", "effective_level": "squad", "role": null, "parent": parent, "rank": 0,
                "position": position,
            })
        };
        json!({"root": root, "nodes": [node(&root, &Value::Null, json!([52.5, 13.4, 30.0])), node(&leaf, &root, json!([52.6, 13.5]))]})
    }

    #[test]
    fn a_tree_is_drawn_in_every_format() {
        let (root, leaf) = ("aa".repeat(32), "bb".repeat(32));
        let data = two();
        assert_eq!(draw(&data, None), "hq (aaaaaaaaaa) squad\n  bbbbbbbbbb squad\n");
        assert!(draw(&data, Some(Drawing::Dot)).contains(&format!("  \"{leaf}\" -> \"{root}\";\n")));
        assert!(draw(&data, Some(Drawing::Mermaid)).contains("  nbbbbbbbbbbbbbbbb --> naaaaaaaaaaaaaaaa\n"));
        let map: Value = serde_json::from_str(&draw(&data, Some(Drawing::Geojson))).unwrap();
        assert_eq!(map["features"][0]["geometry"]["coordinates"], json!([13.4, 52.5]));
        assert_eq!(map["features"][2]["geometry"]["coordinates"], json!([[13.5, 52.6], [13.4, 52.5]]));
    }

    #[test]
    fn who_has_no_position_is_not_on_the_map() {
        let mut data = two();
        data["nodes"][1]["position"] = Value::Null;
        let map: Value = serde_json::from_str(&draw(&data, Some(Drawing::Geojson))).unwrap();
        assert_eq!(map["features"].as_array().unwrap().len(), 1);
    }
}
