"""Settings of the Django project, all from the environment. docs/operations.md lists every name.

Without DATABASE_URL this is the embedded default: real PostgreSQL and Valkey as child processes under
COUNTERFOIL_HOME, secrets generated there once. With DATABASE_URL it is production: secrets must be given.
"""

from __future__ import annotations

import os
from pathlib import Path

import django_stubs_ext

from gateway import __version__, environment
from gateway.console.theme import UNFOLD as UNFOLD
from gateway.embedded import layout

django_stubs_ext.monkeypatch()

BASE_DIR = Path(__file__).resolve().parents[2]
environment.load_dotenv(BASE_DIR / environment.text("COUNTERFOIL_ENV_FILE", ".env"))

VERSION = __version__
COUNTERFOIL_HOME = Path(environment.text("COUNTERFOIL_HOME", str(BASE_DIR / "var"))).resolve()
EMBEDDED = not environment.text("DATABASE_URL")
PRODUCTION = not EMBEDDED
DEBUG = environment.flag("DEBUG", False)
HOST = environment.text("HOST", "127.0.0.1")
PORT = environment.integer("PORT", 8000, low=1, high=65535)

# ---- secrets: generated once for the embedded default, required in production (checks E002) ----------------
_generated = layout.secrets(COUNTERFOIL_HOME) if EMBEDDED else {}
SECRET_KEY = environment.text("SECRET_KEY", _generated.get("SECRET_KEY", ""))
KEY_PEPPER = environment.text("KEY_PEPPER", _generated.get("KEY_PEPPER", ""))
ENCRYPTION_KEYS = environment.strings("ENCRYPTION_KEYS") or [
    key for key in _generated.get("ENCRYPTION_KEYS", "").split(",") if key
]
MISSING_SECRETS = [
    name
    for name, value in [
        ("SECRET_KEY", SECRET_KEY),
        ("KEY_PEPPER", KEY_PEPPER),
        ("ENCRYPTION_KEYS", ENCRYPTION_KEYS),
    ]
    if not value
]
# Django refuses to start without one; the check refuses to serve with this one.
SECRET_KEY = SECRET_KEY or "missing-" + os.urandom(32).hex()

# ---- the wire ---------------------------------------------------------------------------------------------
API_PREFIX = "/" + environment.text("API_PREFIX", "/v1").strip("/")
CORS_ORIGINS = environment.strings("CORS_ORIGINS")
DEFAULT_MODEL = environment.text("DEFAULT_MODEL")
MAX_TOKENS = environment.integer("MAX_TOKENS", 2048)  # cap when a request sets none; 0: none
API_KEYS = environment.strings("API_KEYS")
FORMAT_ERROR_STATUS = environment.integer("FORMAT_ERROR_STATUS", 400)
MAX_BODY_BYTES = environment.integer("MAX_BODY_BYTES", 26_214_400, low=1024)  # OpenAI's own limit
IDEMPOTENCY_HOURS = environment.integer("IDEMPOTENCY_HOURS", 24, low=0, high=8760)  # 0: the header is ignored
IDEMPOTENCY_MAX_BYTES = environment.integer("IDEMPOTENCY_MAX_BYTES", 4_194_304, low=1024, high=104_857_600)
IDEMPOTENCY_MAX_KEPT = environment.integer("IDEMPOTENCY_MAX_KEPT", 10_000, low=1)  # answers of a tenant
SSE_KEEP_ALIVE_SECONDS = environment.integer("SSE_KEEP_ALIVE_SECONDS", 10)  # 0: off
WHOLE_KEEP_ALIVE_SECONDS = environment.integer("WHOLE_KEEP_ALIVE_SECONDS", 45)  # 0: off

# ---- the server: processes, and what a connection may cost -----------------------------------------------
WORKERS = environment.count("WORKERS", 1)  # of `manage.py serve`; auto: 0, as many as there are CPUs
WORKER_MAX_MEMORY_MB = environment.integer("WORKER_MAX_MEMORY_MB", 0)  # 0: no limit
HANG_SECONDS = environment.integer("HANG_SECONDS", 60)  # a worker whose event loop does not turn; 0: no limit
DRAIN_SECONDS = environment.integer("DRAIN_SECONDS", 20, low=0)
MAX_CONNECTIONS = environment.integer("MAX_CONNECTIONS", 0)  # of a process; 0: by its limit of open files
HEAD_SECONDS = environment.integer("HEAD_SECONDS", 30, low=1)  # for a whole request line and headers
BODY_BYTES_PER_SECOND = environment.integer("BODY_BYTES_PER_SECOND", 1000)  # at least, after 30 s; 0: any
# Longer than the idle time-out of usual load balancers (60 s), or they meet resets.
IDLE_SECONDS = environment.integer("IDLE_SECONDS", 75, low=1)
STALL_SECONDS = environment.integer("STALL_SECONDS", 120, low=1)  # a client that reads nothing at all

# ---- refusing, and where upstreams may be -----------------------------------------------------------------
UNAUTHENTICATED_PER_MINUTE = environment.integer("UNAUTHENTICATED_PER_MINUTE", 120)  # by address; 0: no limit
UPSTREAM_ALLOW_PRIVATE = environment.flag("UPSTREAM_ALLOW_PRIVATE", False)
UPSTREAM_ALLOW_LOOPBACK = environment.flag("UPSTREAM_ALLOW_LOOPBACK", EMBEDDED)

# ---- metrics (traces go by OpenTelemetry's own OTEL_... names) ----------------------------------------------
METRICS_TOKEN = environment.text("METRICS_TOKEN")  # for /metrics on the main port; without it there is none
METRICS_HOST = environment.text("METRICS_HOST", "127.0.0.1")
METRICS_PORT = environment.integer("METRICS_PORT", 0, low=0, high=65535)  # without a token; 0: none
METRICS_DIR = environment.text("METRICS_DIR")  # what web processes of one machine share

# ---- Django -----------------------------------------------------------------------------------------------
ALLOWED_HOSTS = environment.strings("ALLOWED_HOSTS") or (["*"] if EMBEDDED else [])
CSRF_TRUSTED_ORIGINS = environment.strings("CSRF_TRUSTED_ORIGINS")
ROOT_URLCONF = "gateway.urls"
ASGI_APPLICATION = "gateway.asgi.application"
APPEND_SLASH = False  # a redirect would turn a POST to /v1/x/ into a GET
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
FORMAT_MODULE_PATH = ["gateway.console.formats"]
USE_TZ = True

INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",  # before the admin, so that its templates win; Basic leaves the site to ours
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "unfold.contrib.simple_history",
    "gateway.console.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "servestatic",  # its checks
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "simple_history",
    "corsheaders",
    "channels",
    "rest_framework",
    "rest_framework.authtoken",
    "django_filters",
    "drf_spectacular",
    "ninja",
    "gateway.apps.GatewayConfig",
    "tenants",
    "gateway.catalogue",
    "gateway.limits",
    "gateway.ledger",
    "gateway.failover",
    "gateway.replies",
    "gateway.billing",
    "gateway.reports",
    "gateway.console",
]

MIDDLEWARE = [
    "gateway.server.middleware.boundary",  # first: it gives every answer its id, and the API's its form
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "gateway.server.middleware.Common",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "simple_history.middleware.HistoryRequestMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# ---- stores -----------------------------------------------------------------------------------------------
# DATABASE_URL is the application's role; MIGRATION_DATABASE_URL the owner's, which only `migrate` uses.
if EMBEDDED:
    DATABASES = layout.databases(COUNTERFOIL_HOME)
    MIGRATION_DATABASE = layout.migration_database(COUNTERFOIL_HOME)
else:
    DATABASES = {"default": environment.database(environment.text("DATABASE_URL"), "DATABASE_URL")}
    MIGRATION_DATABASE = environment.database(
        environment.text("MIGRATION_DATABASE_URL", environment.text("DATABASE_URL")), "MIGRATION_DATABASE_URL"
    )
VALKEY_URL = environment.text("VALKEY_URL", layout.valkey_url(COUNTERFOIL_HOME))
CHANNEL_LAYERS = {
    "default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [VALKEY_URL]}}
}
CELERY_BROKER_URL = VALKEY_URL.replace("unix://", "redis+socket://", 1)

# ---- static files, sign-in, logs --------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
SERVESTATIC_USE_FINDERS = True
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ["MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator"]
]
LOGIN_URL = "admin:login"
HTTPS = environment.flag("HTTPS", PRODUCTION)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = environment.integer("SECURE_HSTS_SECONDS", 31_536_000 if HTTPS else 0)
BEHIND_PROXY = environment.flag("BEHIND_PROXY", False)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
SECURE_REDIRECT_EXEMPT = [".*"]  # TLS is the proxy's work; never redirect an API call
# That redirect; and whether HSTS covers subdomains or is preloaded is for who owns the domain to say.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]
LOGGING_CONFIG = None  # gateway.logs.configure() is called by GatewayConfig.ready

# ---- e-mail: warnings of limits; none is sent without a host -----------------------------------------------
EMAIL_HOST = environment.text("EMAIL_HOST")
EMAIL_PORT = environment.integer("EMAIL_PORT", 587, low=1, high=65535)
EMAIL_HOST_USER = environment.text("EMAIL_HOST_USER")
EMAIL_HOST_PASSWORD = environment.text("EMAIL_HOST_PASSWORD")
EMAIL_USE_TLS = environment.flag("EMAIL_USE_TLS", True)
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = environment.text("DEFAULT_FROM_EMAIL", "counterfoil@localhost")
WARNING_EMAILS = environment.strings("WARNING_EMAILS")

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Counterfoil, finance",
    "DESCRIPTION": "What was used and what it cost. Amounts are decimal strings; days are the tenant's own.",
    "VERSION": VERSION,
    "SERVE_INCLUDE_SCHEMA": False,
}
CORS_ALLOWED_ORIGINS = [origin for origin in CORS_ORIGINS if origin != "*"]
CORS_ALLOW_ALL_ORIGINS = "*" in CORS_ORIGINS
CORS_URLS_REGEX = rf"^({API_PREFIX}/|/health$|/$)"
CORS_EXPOSE_HEADERS = [
    "x-request-id",
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-counterfoil-max-tokens",
    "x-counterfoil-served-model",
    "x-counterfoil-original-request-id",
    "idempotent-replayed",
    *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
]
