"""The generated site's addresses, and the uploads."""

from django.conf import settings
from django.urls import re_path
from django.views.static import serve
from mysite.urls import urlpatterns as site

urlpatterns = [re_path(r"^media/(?P<path>.*)$", serve, {"document_root": settings.MEDIA_ROOT}), *site]
