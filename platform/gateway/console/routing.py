"""WebSocket routes of the console; `gateway.asgi` puts sessions and sign-in around them."""

from django.urls import path

from gateway.console.consumers import FeedConsumer

websocket_urlpatterns = [path("ws/feed/", FeedConsumer.as_asgi())]
