"""The small cast of the tests: acme pays, globex is the neighbour, an admin, a finance user."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from tenants.models import Tenant


@pytest.fixture
def acme(db: None) -> Tenant:
    return Tenant.objects.create(slug="acme", name="Acme", allowed_models=["acme-*"], timezone="Europe/Berlin")


@pytest.fixture
def globex(db: None) -> Tenant:
    return Tenant.objects.create(slug="globex", name="Globex", allowed_models=["*"], currency="EUR")


@pytest.fixture
def admin(db: None) -> User:
    return User.objects.create_superuser("alice", password="alice-password")


@pytest.fixture
def finance(db: None) -> User:
    """Staff who may read the books and change nothing."""
    user = User.objects.create_user("fiona", password="fiona-password", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=["view_usagerecord", "view_workitem", "view_adjustment"])
    )
    return user


@pytest.fixture
def browser(admin: User) -> Client:
    """A client that is signed in as the admin."""
    client = Client()
    client.force_login(admin)
    return client
