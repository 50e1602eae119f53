# The Prefect server, and the worker that sends runs to Kubernetes: Prefect in the version that the project is tested
# with, without torch.
#
#   docker build -f docker/server.Dockerfile -t saeinterp-server .                              # from the folder above
FROM python:3.12-slim-bookworm

RUN useradd --uid 10001 --user-group --create-home saeinterp \
    && install -d -m 700 -o saeinterp -g saeinterp /home/saeinterp/.prefect
WORKDIR /tmp/build
COPY constraints.txt ./
RUN pip install --no-cache-dir prefect prefect-kubernetes -c constraints.txt
WORKDIR /home/saeinterp
USER 10001:10001
# The server copies its UI to the static directory when it starts; the default one, beside Prefect's code, is root's.
ENV PREFECT_HOME=/home/saeinterp/.prefect \
    PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem \
    PREFECT_SERVER_UI_API_URL=/api \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/home/saeinterp/.prefect/ui \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1
VOLUME ["/home/saeinterp/.prefect"]
EXPOSE 4200
# The password comes when a container is started (PREFECT_SERVER_API_AUTH_STRING), never into an image.
CMD ["prefect", "server", "start", "--host", "0.0.0.0", "--port", "4200"]
