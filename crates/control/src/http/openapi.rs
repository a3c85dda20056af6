//! The API's description.

use axum::Json;

/// Generated from the code; the committed copy is `docs/openapi.json`.
pub fn document() -> serde_json::Value {
    serde_json::json!({ "openapi": "3.1.0" })
}

pub async fn serve() -> Json<serde_json::Value> {
    Json(document())
}
