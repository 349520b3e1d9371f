# One image; what a container does is its command: web (below), worker, beat, or any manage.py command.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PYTHONPATH=/app/platform:/app DJANGO_SETTINGS_MODULE=gateway.settings HOST=0.0.0.0
WORKDIR /app

COPY requirements-production.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-production.lock

COPY manage.py ./
COPY platform platform
COPY tenants tenants
COPY apiv1 apiv1
COPY templates templates
RUN python -m compileall -q platform tenants apiv1

# A number, so that Kubernetes' runAsNonRoot can tell; it owns nothing and needs to write nowhere.
USER 10001:10001
EXPOSE 8000
# SIGTERM drains: give it DRAIN_SECONDS and 35 more before a kill (docker stop waits for 10 in all, unless told).
# SIGHUP: new workers, one by one.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
# WORKERS says how many processes.
CMD ["python", "manage.py", "serve", "--port", "8000"]
