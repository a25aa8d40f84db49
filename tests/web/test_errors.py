"""Errors have the type, the shape and the headers that clients expect."""

from __future__ import annotations

import json

import pytest

from mlxlab.web.errors import ApiError, error_response, new_request_id


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_the_status_settles_the_type(status: int, kind: str) -> None:
    error = ApiError(status, "what, where")
    assert error.body("req_1") == {
        "type": "error",
        "error": {"type": kind, "message": "what, where"},
        "request_id": "req_1",
    }
    assert str(error) == "what, where"


def test_an_overloaded_server_says_when_to_come_again() -> None:
    assert int(ApiError(529, "full").headers["retry-after"]) > 0
    assert ApiError(529, "full", {"retry-after": "9"}).headers == {"retry-after": "9"}
    assert not ApiError(500, "no").headers


def test_a_response_carries_its_request_id_twice() -> None:
    error = ApiError(408, "slow", {"connection": "close"})
    response = error_response(error, "req_1")
    assert response.status_code == 408
    assert response.headers["request-id"] == "req_1"
    assert response.headers["connection"] == "close"
    assert response.headers["content-type"] == "application/json"
    assert json.loads(bytes(response.body)) == error.body("req_1")


def test_request_ids_differ() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(id.startswith("req_") for id in ids)
