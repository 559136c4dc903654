# The demo and the commands in a container, with the versions of constraints.txt:
#   docker build --tag mebt .
#   docker run --name demo mebt && docker cp demo:/mebt/demo/report.html .
#   docker run --rm --volume "$PWD:/data" --workdir /data mebt mebt --help
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mebt
COPY . .
RUN make .venv/.demo
ENV PATH="/mebt/.venv/bin:$PATH"
CMD ["make", "demo"]
