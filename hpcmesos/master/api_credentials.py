"""The API's handlers of what one shows to be let in, and of what nobody may see: tokens, certificates, secrets."""

from __future__ import annotations

from litestar import delete, get, post, put

from hpcmesos import api_schema
from hpcmesos.master.requests import OPEN, ApiRequest, actor_of, caller_of, peer_of, site_of
from hpcmesos.master.services import authorities, certificates, tokens
from hpcmesos.master.services import secrets as secret_store


@get("/v1/ca", sync_to_thread=True, security=OPEN)
def show_authority(request: ApiRequest) -> dict[str, str]:
    """The cluster's CA certificates (PEM): a newcomer compares their fingerprints with that of the join token."""
    return {"ca": certificates.authority(site_of(request)).trusted}


@post("/v1/tokens", sync_to_thread=True, status_code=201)
def create_token(data: api_schema.TokenRequest, request: ApiRequest) -> api_schema.TokenReply:
    """A bearer token for a user, or a one-time token by which an agent joins."""
    return tokens.create(site_of(request), actor_of(request), data)


@get("/v1/tokens", sync_to_thread=True)
def list_tokens(request: ApiRequest) -> list[api_schema.TokenStatus]:
    """Tokens that are good: the caller's own, for managers all; never the secrets."""
    return tokens.listing(site_of(request), caller_of(request))


@post("/v1/tokens/revoke", sync_to_thread=True, status_code=200)
def revoke_tokens(data: api_schema.RevokeRequest, request: ApiRequest) -> list[str]:
    """Ends tokens at once, and all that were made by them; answers the ids of what was ended."""
    return tokens.revoke(site_of(request), actor_of(request), data)


@get("/v1/authorities", sync_to_thread=True)
def list_authorities(request: ApiRequest) -> list[api_schema.AuthorityStatus]:
    """The certificate authorities that are trusted. For operators."""
    return authorities.listing(site_of(request), caller_of(request))


@post("/v1/authorities", sync_to_thread=True, status_code=201)
def rotate_authority(data: api_schema.RotateRequest, request: ApiRequest) -> list[api_schema.AuthorityStatus]:
    """Begins to replace the certificate authority. For managers."""
    return authorities.rotate(site_of(request), actor_of(request), data)


@post("/v1/authorities/force", sync_to_thread=True, status_code=200)
def force_authority(request: ApiRequest) -> list[api_schema.AuthorityStatus]:
    """Takes the next step of a replacement without waiting for nodes that lack what it needs. For managers."""
    return authorities.force(site_of(request), actor_of(request))


@get("/v1/certificates", sync_to_thread=True)
def list_certificates(request: ApiRequest) -> list[api_schema.CertificateStatus]:
    """Certificates of nodes that have not run out; for operators."""
    return certificates.listing(site_of(request), caller_of(request))


@post("/v1/certificates/renew", sync_to_thread=True, status_code=201)
def renew_certificate(data: api_schema.RenewRequest, request: ApiRequest) -> api_schema.JoinReply:
    """A node's next certificate, for the one that it shows."""
    return certificates.renew(site_of(request), caller_of(request), data)


@post("/v1/certificates/{node:str}/revoke", sync_to_thread=True, status_code=200)
def revoke_certificates(node: str, request: ApiRequest) -> list[api_schema.CertificateStatus]:
    """Ends all certificates of a node at once; it needs a new join token then. For managers."""
    return certificates.revoke(site_of(request), actor_of(request), node)


@put("/v1/secrets/{name:str}", sync_to_thread=True)
def put_secret(name: str, data: api_schema.SecretRequest, request: ApiRequest) -> api_schema.SecretStatus:
    """Keeps a secret of the caller's for his jobs (-W secret=NAME); it is not shown again."""
    return secret_store.put(site_of(request), actor_of(request), name, data)


@get("/v1/secrets", sync_to_thread=True)
def list_secrets(request: ApiRequest) -> list[api_schema.SecretStatus]:
    """Names of the caller's secrets."""
    return secret_store.listing(site_of(request), caller_of(request))


@delete("/v1/secrets/{name:str}", sync_to_thread=True, status_code=200)
def remove_secret(name: str, request: ApiRequest) -> list[api_schema.SecretStatus]:
    """Takes a secret away; answers those that are left."""
    return secret_store.remove(site_of(request), actor_of(request), name)


@post("/v1/nodes/join", sync_to_thread=True, status_code=201, security=OPEN)
def join_node(data: api_schema.JoinRequest, request: ApiRequest) -> api_schema.JoinReply:
    """An agent's certificate for a one-time token; the token is the credential."""
    return tokens.join(site_of(request), data, f"join token from {peer_of(request).address}")


CREDENTIALS = [
    show_authority,
    create_token,
    list_tokens,
    revoke_tokens,
    list_authorities,
    rotate_authority,
    force_authority,
    list_certificates,
    renew_certificate,
    revoke_certificates,
    put_secret,
    list_secrets,
    remove_secret,
    join_node,
]
