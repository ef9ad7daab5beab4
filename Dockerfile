# Serving only: no torch, no compiler, no root.
#
#   docker build -t ctm-serving .
#   docker run -p 50051:50051 -p 8080:8080 ctm-serving
#   docker run -v "$PWD/model_store:/srv/model_store:ro" ... ctm-serving     # other models

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY protos protos
COPY serving serving
RUN python -m venv /opt/ctm \
 && /opt/ctm/bin/pip install --no-cache-dir --constraint constraints.txt '.[cpu]'

# `docker stop` kills after ten seconds, so the grace below is shorter; with a longer one, stop with --time.
FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home ctm
COPY --from=build /opt/ctm /opt/ctm
COPY model_store /srv/model_store
ENV PATH=/opt/ctm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CTM_SERVE_ADDRESS=0.0.0.0:50051 \
    CTM_SERVE_HTTP_ADDRESS=0.0.0.0:8080 \
    CTM_SERVE_STORE=/srv/model_store \
    CTM_SERVE_LOG_FORMAT=json \
    CTM_SERVE_GRACE_SECONDS=8
WORKDIR /srv
USER ctm
EXPOSE 50051 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['CTM_SERVE_HTTP_ADDRESS'].rpartition(':')[2] + '/readyz', timeout=2)"]
ENTRYPOINT ["ctm-serve"]
