"""What is kept on disk: journal, remembered folders, reports, and the lock of each supervisor."""
