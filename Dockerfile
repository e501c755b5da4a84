# Serves an exported student; docs/deployment.md says how to build and run it. No torch and no transformers.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY constraints.txt ./
# The extra `serve`, and what reading the command line takes. Wheels alone, so that nothing has to be compiled.
RUN pip install --no-cache-dir --only-binary :all: --constraint constraints.txt \
        babel fsspec numpy platformdirs pyarrow pydantic rich ruamel.yaml typer \
        fastapi httptools onnxruntime prometheus-client tokenizers uvicorn uvloop \
    && useradd --create-home --uid 1000 student
COPY cache ./cache
COPY pipeline ./pipeline
COPY stages ./stages
USER 1000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["python", "-m", "pipeline", "student", "serve", "--model", "/model", "--host", "0.0.0.0"]

# Without a target, the image holds the model. With `--target base` it holds none: mount one at /model.
FROM base AS with-model
COPY artifacts/export/onnx /model
