"""What is finished, written down so that it outlives the process: a later run goes on from it."""

from evolve_tasks.journal.administration import (
    JournalInfo,
    SourceInfo,
    forget_journal,
    journal_info,
    journal_sources,
    list_journals,
)
from evolve_tasks.journal.code_identity import stage_token
from evolve_tasks.journal.identity import (
    collected_token,
    file_fingerprint,
    is_sure,
    items_token,
    source_token,
    token_below,
)
from evolve_tasks.journal.journal import Journal, Known

__all__ = [
    "Journal",
    "JournalInfo",
    "Known",
    "SourceInfo",
    "collected_token",
    "file_fingerprint",
    "forget_journal",
    "is_sure",
    "items_token",
    "journal_info",
    "journal_sources",
    "list_journals",
    "source_token",
    "stage_token",
    "token_below",
]
