"""Carries messages to servers that tenants name: webhooks and chats. Everything that leaves goes through one guarded client."""
